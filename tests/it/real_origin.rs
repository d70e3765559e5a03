//! Flotilla behind registries that are private, odd or broken, with a containerd in front of it.
//!
//! containerd reaches manifest and config at the lab's registry. Flotilla's own `hosts_dir` says that another one
//! stands for it, and that one has the faults: so containerd can still fetch what Flotilla declines.

use std::{fs, path::PathBuf, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use flotilla::oci::{Algorithm, Digest};
use tokio::runtime::Runtime;

use crate::{
    lab::{
        Lab,
        containerd::Programs,
        image::{Compression, Published},
        node::Node,
        process::output,
        samples,
        story::{on_every_containerd, tell},
    },
    real_image::Pulled,
    real_mesh::{layer_bytes, layers_sent, metric},
    registry::{Fault, Kind, Registry, Seen},
};

on_every_containerd!(
    a_private_registry_that_redirects_gets_credentials_and_its_store_gets_none,
    containerd_and_flotilla_read_the_same_hosts_toml,
    odd_registries_are_read_all_the_same,
    broken_registries_are_declined_and_containerd_pulls,
);

#[test]
fn strangers_are_left_to_containerd_where_the_setting_says_so() {
    tell("1.6", strangers);
}

/// Busybox, and two megabytes of noise that no other image has.
pub(crate) fn image(lab: &Lab, name: &str, seed: u64) -> Published {
    let busybox = samples::busybox(lab.images(), Compression::Gzip).unwrap();
    let layers = [busybox, samples::noise(lab.images(), 2 << 20, seed).unwrap()];
    lab.images().publish(name, &layers, &["/bin/ls", "/noise"]).unwrap()
}

/// The file in which the lab's registry keeps a blob.
fn file(lab: &Lab, digest: &str) -> PathBuf {
    let hex = digest.trim_start_matches("sha256:");
    lab.dir().join("blobs/docker/registry/v2/blobs/sha256").join(&hex[..2]).join(hex).join("data")
}

fn repository(image: &Published) -> &str {
    image.name.split(':').next().unwrap()
}

/// Gives the registry the image's layers.
fn stock(lab: &Lab, registry: &Registry, image: &Published) {
    for layer in &image.layers {
        registry.put_file(repository(image), &file(lab, &layer.blob.digest)).unwrap();
    }
}

/// Gives the registry the whole image, under its tag `v1`.
pub(crate) fn stock_whole(lab: &Lab, registry: &Registry, image: &Published) {
    stock(lab, registry, image);
    registry.put_file(repository(image), &file(lab, &image.config.digest)).unwrap();
    let manifest = fs::read(file(lab, &image.manifest.digest)).unwrap();
    registry.put_manifest(repository(image), Some("v1"), &image.manifest.media_type, manifest);
}

/// The sandbox image's layer too, which is pulled when something runs.
fn stock_sandbox(lab: &Lab, registry: &Registry) {
    let sandbox = samples::pause(lab.images()).unwrap();
    stock(lab, registry, &sandbox);
}

/// A `hosts_dir` in which `registry` stands for the lab's, as the setting's value.
fn hosts_dir(lab: &Lab, registry: &Registry) -> String {
    let dir = lab.dir().join("mirrors");
    let folder = dir.join(lab.host());
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("hosts.toml"), format!("server = \"{}\"\n", registry.url())).unwrap();
    format!("[{dir:?}]")
}

fn docker_config(lab: &Lab, host: &str, login: &str) -> String {
    let path = lab.dir().join("config.json");
    let auth = STANDARD.encode(login);
    fs::write(&path, format!(r#"{{"auths":{{"{host}":{{"auth":"{auth}"}}}}}}"#)).unwrap();
    format!("{path:?}")
}

/// What the log says of the noise layer of an image, from the first line that has all of `words`.
fn line_on(node: &mut Node, image: &Published, words: &[&str]) -> String {
    let digest = &image.layers[1].blob.digest;
    let fits = |line: &&String| line.contains(digest) && words.iter().all(|word| line.contains(word));
    let process = node.flotilla().process().unwrap();
    process.wait_until(&words.join(" … "), |lines| lines.iter().find(fits).cloned()).unwrap()
}

/// Every blob of Flotilla's store holds the bytes of its digest.
fn assert_store_true(lab: &Lab, node: &Node) {
    let blobs = lab.dir().join(&node.name).join("flotilla/data/blobs/sha256");
    // There is no folder before there is a blob.
    let folders = |dir: PathBuf| fs::read_dir(dir).into_iter().flatten().map(|entry| entry.unwrap().path());
    for blob in folders(blobs).flat_map(folders) {
        let digest = Digest::of(Algorithm::Sha256, &fs::read(blob.join("data")).unwrap()).to_string();
        assert!(digest.ends_with(blob.file_name().unwrap().to_str().unwrap()), "{}", blob.display());
    }
}

/// Layers that were left to containerd for this reason.
fn declined(node: &Node, reason: &str) -> u64 {
    metric(node, "flotilla_layers_total", &["outcome=\"declined\"", &format!("reason=\"{reason}\"")])
}

fn assert_whole(lab: &Lab, node: &Node, image: &Published) {
    let name = lab.name(&image.name);
    assert!(node.is_complete(&name).unwrap(), "{name}");
    assert_eq!(node.run(&name, &["/bin/ls", "/noise"]).unwrap().exit_code, 0);
    assert_store_true(lab, node);
}

fn a_private_registry_that_redirects_gets_credentials_and_its_store_gets_none(
    lab: &Lab,
    containerd: Programs,
) {
    let runtime = Runtime::new().unwrap();
    let registry = runtime.block_on(Registry::start());
    let store = runtime.block_on(Registry::beside(&registry));
    let user = Some(("me".to_owned(), "secret".to_owned()));
    registry.switch_on(Fault::TokenAuth { user, identity_token: None, life: Duration::from_secs(300) });
    registry.switch_on(Fault::RedirectBlobs { to: store.url() });
    let image = image(lab, "demo/private:v1", 51);
    stock(lab, &registry, &image);
    stock_sandbox(lab, &registry);
    let plan = || {
        let plan = lab.node(&containerd).alone().with_annotations().setting(
            "registry",
            "hosts_dir",
            &hosts_dir(lab, &registry),
        );
        plan.setting("registry", "plain_http", "[\"127.0.0.1\"]")
    };
    let config = docker_config(lab, &registry.host(), "me:secret");
    let known = plan().setting("registry", "docker_config", &config).start().unwrap();

    known.pull(&lab.name(&image.name)).unwrap();
    assert_eq!(layers_sent(&lab.registry(), &image), (0, 0), "only the private registry was asked");
    assert_eq!(metric(&known, "flotilla_layers_total", &["outcome=\"intercepted\""]), 2);
    assert_eq!(registry.requests(Kind::Token), 1);
    let bytes = layer_bytes(&image);
    assert_eq!((registry.body_bytes(Kind::Blob) < bytes, store.body_bytes(Kind::Blob)), (true, bytes));
    let told: Vec<_> = store.seen().into_iter().filter(|seen| seen.carried_credentials()).collect();
    assert!(told.is_empty(), "{told:?}");
    assert_whole(lab, &known, &image);

    let wrong = docker_config(lab, &registry.host(), "me:guess");
    let mut unknown = plan().setting("registry", "docker_config", &wrong).start().unwrap();
    unknown.pull(&lab.name(&image.name)).unwrap();
    line_on(&mut unknown, &image, &["blob not pulled", "refused the credentials"]);
    line_on(&mut unknown, &image, &["outcome=\"declined\"", "reason=\"origin_unauthorized\""]);
    assert_eq!(declined(&unknown, "origin_unauthorized"), 2);
    assert_eq!(layers_sent(&lab.registry(), &image), (bytes, 2), "containerd fetched the layers by itself");
    assert_whole(lab, &unknown, &image);
}

fn containerd_and_flotilla_read_the_same_hosts_toml(lab: &Lab, containerd: Programs) {
    let runtime = Runtime::new().unwrap();
    let registry = runtime.block_on(Registry::start());
    registry.switch_on(Fault::BasicAuth { user: "me".into(), password: "secret".into() });
    let image = image(lab, "demo/header:v1", 52);
    stock_whole(lab, &registry, &image);
    let folder = lab.hosts_dir().join(registry.host());
    fs::create_dir_all(&folder).unwrap();
    let (url, auth) = (registry.url(), STANDARD.encode("me:secret"));
    let text = format!(
        "server = \"{url}\"\n[host.\"{url}\"]\n  capabilities = [\"pull\", \"resolve\"]\n\
         [host.\"{url}\".header]\n  authorization = \"Basic {auth}\"\n"
    );
    fs::write(folder.join("hosts.toml"), text).unwrap();
    let node = lab.node(&containerd).alone().start().unwrap();

    node.pull(&format!("{}/{}", registry.host(), image.name)).unwrap();
    let layers: Vec<String> = image.layers.iter().map(|layer| layer.blob.digest.clone()).collect();
    let agent = |seen: &crate::registry::Seen| {
        seen.headers.get(http::header::USER_AGENT).map(|agent| agent.to_str().unwrap().to_owned())
    };
    let by_containerd: Vec<String> = registry
        .seen()
        .iter()
        .filter(|seen| agent(seen).is_some_and(|agent| agent.starts_with("containerd/")))
        .map(|seen| seen.path.clone())
        .collect();
    assert!(by_containerd.iter().any(|path| path.contains(&image.config.digest)), "{by_containerd:?}");
    assert!(!by_containerd.iter().any(|path| layers.iter().any(|layer| path.contains(layer))));
    assert_eq!(metric(&node, "flotilla_layers_total", &["outcome=\"intercepted\""]), 2);
    assert_store_true(lab, &node);
}

/// A node whose Flotilla asks another registry than its containerd does.
fn behind(lab: &Lab, containerd: &Programs, registry: &Registry) -> Node {
    let plan = lab.node(containerd).alone().with_annotations().setting(
        "registry",
        "hosts_dir",
        &hosts_dir(lab, registry),
    );
    plan.setting("registry", "plain_http", "[\"127.0.0.1\"]").start().unwrap()
}

fn odd_registries_are_read_all_the_same(lab: &Lab, containerd: Programs) {
    let runtime = Runtime::new().unwrap();
    let registry = runtime.block_on(Registry::start());
    let store = runtime.block_on(Registry::beside(&registry));
    stock_sandbox(lab, &registry);
    let node = behind(lab, &containerd, &registry);
    let faults = [
        Fault::IgnoreRange,
        Fault::RefuseRange,
        Fault::RefuseHead,
        Fault::RedirectBlobs { to: store.url() },
        Fault::Throttle { bytes_per_second: 4_000_000 },
        Fault::TooManyRequests { times: 2, retry_after: 1 },
        Fault::ServerError { times: 1 },
        Fault::Truncate { after: 700_000, times: 1 },
        // Its HEAD states the right length: no more than that is read.
        Fault::Endless,
    ];
    for (fault, seed) in faults.into_iter().zip(61..) {
        let image = image(lab, &format!("demo/odd{seed}:v1"), seed);
        stock(lab, &registry, &image);
        registry.heal();
        registry.switch_on(fault.clone());
        node.pull(&lab.name(&image.name)).unwrap();
        assert_eq!(
            layers_sent(&lab.registry(), &image),
            (0, 0),
            "{fault:?}: only the odd registry was asked"
        );
        assert_whole(lab, &node, &image);
    }
    assert_eq!(metric(&node, "flotilla_layers_total", &["outcome=\"declined\""]), 0);
}

fn broken_registries_are_declined_and_containerd_pulls(lab: &Lab, containerd: Programs) {
    let runtime = Runtime::new().unwrap();
    let registry = runtime.block_on(Registry::start());
    let mut node = behind(lab, &containerd, &registry);
    let faults = [
        (Fault::WrongBytes, "serves other bytes than", "wrong_digest"),
        (Fault::Html, "answered with a web page", "origin_html"),
        (Fault::Longer { by: 1 }, "with the length that its manifest states", "no_origin"),
        (Fault::RedirectLoop, "redirect refused", "origin_redirects"),
    ];
    for ((fault, why, reason), seed) in faults.into_iter().zip(71..) {
        let image = image(lab, &format!("demo/broken{seed}:v1"), seed);
        stock(lab, &registry, &image);
        registry.heal();
        registry.switch_on(fault.clone());
        node.pull(&lab.name(&image.name)).unwrap();
        line_on(&mut node, &image, &["blob not pulled", why]);
        line_on(&mut node, &image, &["outcome=\"declined\"", &format!("reason=\"{reason}\"")]);
        assert!(declined(&node, reason) >= 1, "{fault:?}");
        let noise = image.layers[1].blob.size;
        let (sent, by_containerd) = layers_sent(&lab.registry(), &image);
        assert!(sent >= noise && by_containerd >= 1, "{fault:?}: containerd fetched the layer by itself");
        assert_whole(lab, &node, &image);
    }
    // The registry's own answer is the reason on the command line too. Busybox may be here by now: adopted.
    let image = image(lab, "demo/broken79:v1", 79);
    stock(lab, &registry, &image);
    registry.put_file(repository(&image), &file(lab, &image.config.digest)).unwrap();
    let manifest = fs::read(file(lab, &image.manifest.digest)).unwrap();
    registry.put_manifest(repository(&image), Some("v1"), &image.manifest.media_type, manifest);
    let pull = node.daemon().unwrap().command(&["pull", "--json", &lab.name(&image.name)]);
    let said = output(pull).unwrap_err().to_string();
    let noise = |line: &&str| line.contains(&image.layers[1].blob.digest);
    let of_noise: Vec<&str> = said.lines().filter(noise).collect();
    assert!(matches!(of_noise[..], [line] if line.contains("\"reason\":\"origin_redirects\"")), "{said}");
}

/// Somebody's pod names an image of his own registry, which has the layer of an honest one with another length.
fn strangers(lab: &Lab, containerd: Programs) {
    let honest = image(lab, "demo/honest:v1", 73);
    let mut longer = honest.layers[1].clone();
    longer.blob.size += 4096;
    let claimed = lab.images().publish("evil/longer:v1", &[longer], &["/bin/ls"]).unwrap();
    let runtime = Runtime::new().unwrap();
    let stranger = runtime.block_on(Registry::start());
    stock_whole(lab, &stranger, &claimed);
    let plan = lab.node(&containerd).alone().setting("registry", "strangers", "\"leave\"");
    // containerd's labels lose the port.
    let node = plan.setting("mirror", "registries", "[\"127.0.0.1\"]").start().unwrap();
    // containerd speaks plain HTTP to it without anybody's word.
    let name = format!("localhost:{}/{}", stranger.address().port(), claimed.name);
    assert!(node.pull(&name).is_err(), "containerd itself refuses the length");
    assert!(metric(&node, "flotilla_layers_total", &["reason=\"stranger\""]) > 0);
    let agent = |seen: &Seen| seen.headers.get("user-agent").map(|agent| agent.to_str().unwrap().to_owned());
    let seen = stranger.seen();
    assert!(
        seen.iter().filter_map(agent).all(|agent| !agent.starts_with("flotilla/")),
        "nothing is read there"
    );

    node.pull(&lab.name(&honest.name)).unwrap();
    Pulled::new(lab, &node, &honest).was_brought_by_flotilla();
}

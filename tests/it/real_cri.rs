//! kubelet's image service through the proxy: pull secrets that reach nobody else, and nothing else changed.

use std::{path::PathBuf, process::Command, time::Duration};

use http::header;
use tokio::runtime::Runtime;

use crate::{
    lab::{
        Lab,
        containerd::Programs,
        cri::Cri,
        image::Published,
        node::Node,
        process::output,
        samples,
        story::{example, on_every_containerd, tell},
        tool,
    },
    real_clients::critests_image_manager,
    real_layers::counted,
    real_origin::{image, stock_whole},
    registry::{Fault, Registry, Seen},
};

on_every_containerd!(pull_secrets_serve_the_pull);

#[test]
fn crictl_through_the_proxy_sees_containerd() {
    tell("2.1", crictl);
}

#[test]
fn critests_image_manager_passes_through_the_proxy_on_containerd_1_7() {
    tell("1.7", critest);
}

#[test]
fn critests_image_manager_passes_through_the_proxy_on_containerd_2_4() {
    tell("2.4", critest);
}

fn with_proxy(lab: &Lab, containerd: &Programs) -> Node {
    let plan = lab.node(containerd).alone().setting("containerd", "cri_proxy", "true");
    plan.setting("registry", "plain_http", "[\"127.0.0.1\"]").start().unwrap()
}

fn proxy(lab: &Lab, node: &Node) -> PathBuf {
    lab.dir().join(&node.name).join("flotilla/run/cri.sock")
}

/// Layers of the image of which the registry sent bytes to this kind of client.
fn sent_to(registry: &Registry, image: &Published, agent: &str) -> usize {
    let by_agent = |seen: &Seen| {
        let name = seen.headers.get(header::USER_AGENT).and_then(|name| name.to_str().ok());
        name.is_some_and(|name| name.starts_with(agent))
    };
    let seen: Vec<Seen> = registry.seen().into_iter().filter(by_agent).collect();
    let sent = |digest: &str| seen.iter().any(|seen| seen.path.contains(digest) && seen.body_bytes() > 100);
    image.layers.iter().filter(|layer| sent(&layer.blob.digest)).count()
}

fn pull_secrets_serve_the_pull(lab: &Lab, containerd: Programs) {
    let runtime = Runtime::new().unwrap();
    let registry = runtime.block_on(Registry::start());
    let user = Some(("pod".to_owned(), "pullsecret".to_owned()));
    registry.switch_on(Fault::TokenAuth { user, identity_token: None, life: Duration::from_secs(300) });
    lab.trust_plain_http(&registry.host()).unwrap();
    let image = image(lab, "demo/secret:v1", 71);
    stock_whole(lab, &registry, &image);
    let node = with_proxy(lab, &containerd);
    let name = format!("{}/{}", registry.host(), image.name);
    let cri = Cri::new(&example("cri"), proxy(lab, &node), lab.dir());

    // Without credentials containerd's own word comes back.
    let refused = output(cri.command(&["pull", &name])).unwrap_err().to_string();
    assert!(refused.contains("401") || refused.contains("authoriz"), "{refused}");
    let wrong = output(cri.command(&["pull", "--creds", "pod:guess", &name])).unwrap_err().to_string();
    assert!(wrong.contains("401") || wrong.contains("authoriz"), "{wrong}");
    assert_eq!(sent_to(&registry, &image, "flotilla/"), 0);

    output(cri.command(&["pull", "--creds", "pod:pullsecret", &name])).unwrap();
    assert_eq!(sent_to(&registry, &image, "containerd/"), 0, "every layer came by Flotilla");
    assert_eq!(sent_to(&registry, &image, "flotilla/"), 2);
    assert_eq!(counted(node.daemon().unwrap(), "intercepted"), 2.0);
    assert!(node.is_complete(&name).unwrap());
    let log = std::fs::read_to_string(node.daemon().unwrap().log()).unwrap();
    assert!(!log.contains("pullsecret"), "secrets are in no log");

    // What was lent for that pull is gone with it: the node itself may still not read there.
    let said = node.daemon().unwrap().command(&["pull", &name]).output().unwrap();
    let said = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(said.contains("401"), "{said}");
}

fn crictl(lab: &Lab, containerd: Programs) {
    let Some(program) = tool("crictl") else {
        eprintln!("skipped: no crictl here; cargo xtask setup builds it where Go is");
        return;
    };
    let image = samples::small(lab.images(), "demo/small:v1").unwrap();
    let name = lab.name(&image.name);
    let mut node = with_proxy(lab, &containerd);
    let containerd = format!("unix://{}", node.containerd.socket().display());
    let proxied = format!("unix://{}", proxy(lab, &node).display());
    let crictl = |endpoint: &str, arguments: &[&str]| {
        let mut crictl = Command::new(&program);
        crictl.args([
            "--config",
            "/dev/null",
            "--runtime-endpoint",
            &containerd,
            "--image-endpoint",
            endpoint,
        ]);
        crictl.args(arguments);
        output(crictl)
    };
    assert!(crictl(&proxied, &["pull", &name]).unwrap().contains("Image is up to date"));
    assert_eq!(counted(node.daemon().unwrap(), "intercepted"), 3.0);
    // Fields that our own messages do not know come through as well.
    for arguments in [&["images", "--output", "json"][..], &["inspecti", &name]] {
        let [direct, passed] = [&containerd, &proxied].map(|endpoint| crictl(endpoint, arguments).unwrap());
        assert_eq!(direct, passed, "{arguments:?}");
    }
    crictl(&proxied, &["rmi", &name]).unwrap();
    assert!(!crictl(&containerd, &["images"]).unwrap().contains("demo/small"));
    let missing = crictl(&proxied, &["inspecti", &name]).unwrap_err().to_string();
    assert!(missing.contains("no such image"), "{missing}");
    assert!(crictl(&proxied, &["imagefsinfo"]).unwrap().contains("fsId"));

    // containerd goes and comes back; the proxy finds it again.
    node.containerd.kill().unwrap();
    crictl(&proxied, &["images"]).unwrap_err();
    node.containerd.start_again().unwrap();
    let cri = Cri::new(&example("cri"), proxy(lab, &node), lab.dir());
    cri.pull(&name).unwrap();
    assert!(crictl(&proxied, &["images"]).unwrap().contains("demo/small"));
}

fn critest(lab: &Lab, containerd: Programs) {
    let node = with_proxy(lab, &containerd);
    let images = format!("-image-endpoint=unix://{}", proxy(lab, &node).display());
    critests_image_manager(lab, &node, &[&images]);
}

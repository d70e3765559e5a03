//! Private images by Docker through the proxy: who gets them, and who hears the password.

use std::{
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
    time::Duration,
};

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE},
};
use tokio::runtime::Runtime;

use crate::{
    lab::{
        Lab,
        containerd::Programs,
        registry::lead_to,
        story::{Plan, tell},
    },
    real_docker::{Docker, Dockerd, on_every_docker, opening, with},
    real_image::log,
    real_mesh::with_a_liar_of,
    real_mirror::REGISTRY,
    real_origin::{image, stock_whole},
    registry::{Fault, Kind, Registry},
};

on_every_docker!(docker_gets_private_images_through_the_proxy);

const USER: &str = "docker";
const PASSWORD: &str = "open-sesame";

/// Two nodes, of which the other remembers what it is told, and a registry that asks for credentials, by token and at each
/// request, and redirects to a store.
fn docker_gets_private_images_through_the_proxy(dockerd: &Dockerd) {
    tell("1.6", |lab, containerd| private(lab, &containerd, dockerd));
}

fn private(lab: &Lab, containerd: &Programs, dockerd: &Dockerd) {
    let runtime = Runtime::new().unwrap();
    let registry = runtime.block_on(Registry::start());
    let store = runtime.block_on(Registry::beside(&registry));
    lead_to(&lab.hosts_dir(), REGISTRY, &registry.host()).unwrap();
    let (tls, ca) = opening(lab);
    let opened =
        |plan| tls.iter().fold(plan, |plan: Plan, (name, value)| plan.setting("mirror", name, value));
    let (nodes, other) = with_a_liar_of(lab, containerd, opened);
    let docker = dockerd.beside(lab, &nodes[0], Some(&ca));
    let by_token = Fault::TokenAuth {
        user: Some((USER.into(), PASSWORD.into())),
        identity_token: None,
        life: Duration::from_secs(300),
    };
    let by_password = Fault::BasicAuth { user: USER.into(), password: PASSWORD.into() };
    for (name, seed, fault) in
        [("private/by-token:v1", 95, by_token), ("private/by-password:v1", 96, by_password)]
    {
        let image = image(lab, name, seed);
        stock_whole(lab, &registry, &image);
        registry.heal();
        registry.switch_on(fault);
        registry.switch_on(Fault::RedirectBlobs { to: store.url() });
        let name = format!("{REGISTRY}/{name}");
        let are_refused = || {
            for password in [None, Some("wrong")] {
                let [here, there] = [REGISTRY, &*registry.host()]
                    .map(|host| is_refused(&docker, &format!("{host}/{}", image.name), password));
                let as_there = here.replace(&format!("https://{REGISTRY}"), &registry.url());
                assert_eq!(as_there, there, "what it says without a proxy");
            }
        };
        are_refused();
        docker.say(&["login", "--username", USER, "--password", PASSWORD, REGISTRY]);
        docker.pulls(&name, &image);
        docker.say(&["rmi", &name]);
        are_refused();
        let (repository, noise) = (image.name.split(':').next().unwrap(), &image.layers[1].blob);
        let sent = store.body_bytes_of(&format!("/v2/{repository}/blobs/{}", noise.digest));
        assert_eq!(sent, noise.size, "it left the registry's store once");
        assert!(other.told().contains(&noise.digest), "the other node was asked for it");
    }
    stayed_with_the_registry(&registry, &[&other.told(), &log(&nodes[0]), &log(&nodes[1])]);
    assert!(store.seen().iter().all(|seen| !seen.carried_credentials()));
}

/// None of `texts` has the password, or a token that it was exchanged for.
fn stayed_with_the_registry(registry: &Registry, texts: &[&str]) {
    let tokens = registry.requests(Kind::Token);
    assert!(tokens > 0);
    let tokens = (1..=tokens).map(|number| format!("token-{number}"));
    let login = STANDARD.encode(format!("{USER}:{PASSWORD}"));
    for secret in tokens.chain([PASSWORD.to_owned(), login]) {
        assert!(texts.iter().all(|text| !text.contains(&secret)), "{secret}");
    }
}

/// What the daemon says of a pull that it is asked for with this password of `USER`'s. The command would ask for another,
/// and version 28 of it without an end.
fn is_refused(docker: &Docker, name: &str, password: Option<&str>) -> String {
    let login = password.map(|password| format!(r#"{{"username":"{USER}","password":"{password}"}}"#));
    let login = URL_SAFE.encode(login.unwrap_or_else(|| "{}".to_owned()));
    let mut daemon = UnixStream::connect(&docker.socket).unwrap();
    let pull = format!("POST /images/create?fromImage={name} HTTP/1.0\r\nX-Registry-Auth: {login}\r\n\r\n");
    daemon.write_all(pull.as_bytes()).unwrap();
    let mut said = String::new();
    daemon.read_to_string(&mut said).unwrap();
    assert!(!docker.say(&["images"]).contains(name.rsplit_once(':').unwrap().0), "{said}");
    said.split_once("\r\n\r\n").unwrap().1.to_owned()
}

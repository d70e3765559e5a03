//! kubelet with a static pod, on demand: building one takes a quarter of an hour.

use std::{
    fs,
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use serde_json::json;

use crate::{
    lab::{
        Lab,
        containerd::Programs,
        process::{PATIENCE, Process},
        samples,
        story::on_every_containerd,
        tool,
    },
    real_image::{cgroup, log},
    real_layers::{came_by_flotilla, containerd_was_left_nothing, counted},
};

on_every_containerd!(a_static_pod_starts, a_static_pod_starts_through_the_cri_proxy);

/// How often we look for what the pod writes.
const LOOK_AFTER: Duration = Duration::from_millis(200);

fn a_static_pod_starts(lab: &Lab, containerd: Programs) {
    starts(lab, &containerd, false);
}

/// `--image-service-endpoint` is Flotilla's.
fn a_static_pod_starts_through_the_cri_proxy(lab: &Lab, containerd: Programs) {
    starts(lab, &containerd, true);
}

fn starts(lab: &Lab, containerd: &Programs, by_proxy: bool) {
    let Some(kubelet) = tool("kubelet") else {
        eprintln!("skipped: no kubelet here; cargo xtask setup kubelet builds it where Go is");
        return;
    };
    let image = samples::small(lab.images(), "demo/small:v1").unwrap();
    let plan = lab.node(containerd).alone();
    let node = plan.setting("containerd", "cri_proxy", &by_proxy.to_string()).start().unwrap();
    // kubelet wants the runtime's network ready, the pod uses none.
    let network = json!({ "cniVersion": "1.0.0", "name": "lo", "plugins": [{ "type": "loopback" }] });
    write_json(&lab.dir().join(&node.name).join("containerd/cni/10-lo.conflist"), &network);
    let dir = lab.dir().join("kubelet");
    let said = dir.join("said");
    fs::create_dir_all(dir.join("pods")).unwrap();
    fs::create_dir_all(&said).unwrap();
    write_json(&dir.join("pods/pod.json"), &pod(&lab.name(&image.name), &said));
    write_json(&dir.join("kubelet.json"), &settings(lab, &dir, &node.containerd.socket()));

    let mut command = Command::new(kubelet);
    command.arg("--config").arg(dir.join("kubelet.json")).arg("--root-dir").arg(dir.join("root"));
    command.args(["--hostname-override", "lab", "--cert-dir"]).arg(dir.join("certs"));
    if by_proxy {
        let socket = lab.dir().join(&node.name).join("flotilla/run/cri.sock");
        command.arg(format!("--image-service-endpoint=unix://{}", socket.display()));
    }
    let mut kubelet = Process::start("kubelet", command, &dir.join("kubelet.log"), lab.dir()).unwrap();
    let deadline = Instant::now() + PATIENCE;
    let word = said.join("word");
    while fs::read_to_string(&word).ok().as_deref() != Some("a small image\n") {
        assert!(kubelet.runs() && Instant::now() < deadline, "the pod has not written {}", word.display());
        thread::park_timeout(LOOK_AFTER);
    }
    let daemon = node.daemon().unwrap();
    // The sandbox's image has one layer, the pod's three.
    assert_eq!(counted(daemon, "intercepted"), 4.0, "{}", daemon.metrics().unwrap().page());
    came_by_flotilla(lab, &image);
    containerd_was_left_nothing(daemon);
    let ahead =
        log(&node).contains(&format!("started ahead of containerd image=\"{}\"", lab.name(&image.name)));
    assert_eq!(ahead, by_proxy, "{}", log(&node));
    kubelet.terminate().unwrap();
}

fn write_json(path: &Path, value: &serde_json::Value) {
    fs::write(path, value.to_string()).unwrap();
}

/// In the host's network; it writes what its image has where the story can read it.
fn pod(image: &str, said: &Path) -> serde_json::Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": "static", "namespace": "default" },
        "spec": {
            "hostNetwork": true,
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 1,
            "containers": [{
                "name": "says",
                "image": image,
                "imagePullPolicy": "IfNotPresent",
                "command": ["/bin/sh", "-c", "cat /etc/lab > /said/word"],
                "volumeMounts": [{ "name": "said", "mountPath": "/said" }],
            }],
            "volumes": [{ "name": "said", "hostPath": { "path": said } }],
        },
    })
}

/// A kubelet without a cluster that leaves the machine alone.
fn settings(lab: &Lab, dir: &Path, containerd: &Path) -> serde_json::Value {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "staticPodPath": dir.join("pods"),
        "podLogsDir": dir.join("logs"),
        "containerRuntimeEndpoint": format!("unix://{}", containerd.display()),
        "address": "127.0.0.1",
        // Nothing is asked of it; 0 would be the default port.
        "port": free_port(),
        "healthzPort": 0,
        "readOnlyPort": 0,
        "authentication": { "anonymous": { "enabled": true }, "webhook": { "enabled": false } },
        "authorization": { "mode": "AlwaysAllow" },
        "cgroupDriver": "cgroupfs",
        // All that it runs goes into the lab's; a tree of its own, /kubepods, would be every kubelet's here.
        "cgroupsPerQOS": false,
        "cgroupRoot": cgroup(lab),
        "enforceNodeAllocatable": [],
        "failCgroupV1": false,
        "failSwapOn": false,
        "oomScoreAdj": 0,
        "evictionHard": { "nodefs.available": "1Mi", "imagefs.available": "1Mi", "memory.available": "1Mi" },
        "imageGCHighThresholdPercent": 100,
        "resolvConf": "",
    })
}

/// A port that was free a moment ago: kubelet takes 0 for its own default.
fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

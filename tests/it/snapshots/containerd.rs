//! A real containerd with the snapshotter under test as its proxy plugin `flotilla`.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use flotilla::{
    oci::{Algorithm, Digest},
    snapshot::LABEL_SNAPSHOT_REF,
    wire::containerd::services::snapshots::v1::Kind,
};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
};
use tokio_util::task::TaskTracker;
use tonic::Code;

use super::{
    mounting::Mounted,
    plugin::{Plugin, rooted},
    tree::look,
};
use crate::lab::containerd::{self, Programs};

/// Far above what containerd ever takes to start: only a broken one runs into it.
const START_MAX: Duration = Duration::from_secs(60);

pub(crate) struct Containerd {
    pub(crate) socket: PathBuf,
    programs: Programs,
    process: Child,
}

impl Containerd {
    /// Starts containerd in `dir`, where the plugin listens on `flotilla.sock`. `None`, said aloud, where
    /// there is no containerd.
    pub(crate) async fn start(dir: &Path) -> Option<Self> {
        let Some(programs) = containerd::any() else {
            eprintln!("skipped: no containerd here; cargo xtask setup gets it where it can");
            return None;
        };
        let at = dir.display();
        let config = format!(
            "version = 2\nroot = '{at}/cd'\nstate = '{at}/run'\n\
             disabled_plugins = ['io.containerd.grpc.v1.cri']\n\
             [grpc]\naddress = '{at}/cd.sock'\n[ttrpc]\naddress = '{at}/cd.sock.ttrpc'\n\
             [proxy_plugins.flotilla]\ntype = 'snapshot'\naddress = '{at}/flotilla.sock'\n"
        );
        let file = dir.join("containerd.toml");
        std::fs::write(&file, config).unwrap();
        let mut process = Command::new(programs.bin.join("containerd"))
            .arg("--config")
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut log = BufReader::new(process.stderr.take().unwrap()).lines();
        let booted = async {
            let mut seen = Vec::new();
            while let Some(line) = log.next_line().await.unwrap() {
                if line.contains("containerd successfully booted") {
                    return;
                }
                seen.push(line);
            }
            panic!("containerd ended before it was up:\n{}", seen.join("\n"));
        };
        tokio::time::timeout(START_MAX, booted).await.expect("containerd starts");
        // A full pipe would stop containerd.
        let tasks = TaskTracker::new();
        tasks.spawn(async move { while let Ok(Some(_)) = log.next_line().await {} });
        Some(Self { socket: dir.join("cd.sock"), programs, process })
    }

    async fn ctr(&self, arguments: &[&str]) -> Result<String, String> {
        let output = Command::new(self.programs.bin.join("ctr"))
            .arg("--address")
            .arg(&self.socket)
            .args(["snapshots", "--snapshotter", "flotilla"])
            .args(arguments)
            .output()
            .await
            .unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
    }

    pub(crate) async fn stop(&mut self) {
        self.process.kill().await.unwrap();
    }
}

#[tokio::test]
async fn ctr_works_with_snapshots_of_ours() {
    let Some(mut plugin) = Plugin::through_containerd().await else { return };
    let mut containerd = plugin.containerd.take().unwrap();

    containerd.ctr(&["prepare", "one-active"]).await.unwrap();
    containerd.ctr(&["commit", "one", "one-active"]).await.unwrap();
    containerd.ctr(&["prepare", "two-active", "one"]).await.unwrap();
    let mount = containerd.ctr(&["mounts", "/target", "two-active"]).await.unwrap();
    assert!(mount.contains("mount -t overlay overlay /target"), "{mount}");
    containerd.ctr(&["commit", "two", "two-active"]).await.unwrap();

    let tree = containerd.ctr(&["tree"]).await.unwrap();
    assert!(tree.contains("one") && tree.contains("two"), "{tree}");
    let listed = containerd.ctr(&["list"]).await.unwrap();
    assert!(listed.lines().any(|line| line.starts_with("two ") && line.contains("Committed")), "{listed}");
    let info = containerd.ctr(&["info", "two"]).await.unwrap();
    assert!(info.contains("\"Parent\": \"one\""), "{info}");
    containerd.ctr(&["label", "two", "colour=blue"]).await.unwrap();
    assert!(containerd.ctr(&["info", "two"]).await.unwrap().contains("blue"));
    containerd.ctr(&["usage"]).await.unwrap();

    let refused = containerd.ctr(&["remove", "one"]).await.unwrap_err();
    assert!(refused.contains("remove"), "{refused}");
    containerd.ctr(&["remove", "two"]).await.unwrap();
    containerd.ctr(&["remove", "one"]).await.unwrap();
    assert_eq!(containerd.ctr(&["list"]).await.unwrap().lines().count(), 1, "only the headline is left");
    containerd.stop().await;
}

/// The whole point: containerd asks for a layer, hears that it is there and finds it under our name for it.
#[tokio::test]
async fn containerd_takes_over_layers_that_were_built_here() {
    let Some(mut plugin) = Plugin::through_containerd().await else { return };
    let mut parent_here = String::new();
    let mut parent_there = String::new();
    for content in ["bottom", "middle", "top"] {
        let chain_id = Digest::of(Algorithm::Sha256, content.as_bytes());
        let target = chain_id.to_string();
        let staging = plugin.snapshots.stage().unwrap();
        std::fs::write(staging.path().join(content), content).unwrap();
        let labels = HashMap::new();
        let made = plugin.snapshots.commit_tree(staging, &chain_id, &parent_here, labels).unwrap();
        plugin.recorder.present.lock().push(target.clone());

        let key = format!("extract-1-x {target}");
        let wanted = rooted(&[(LABEL_SNAPSHOT_REF, &target)]);
        let answer = plugin.prepare_with(&key, &parent_there, wanted).await.unwrap_err();
        assert_eq!(answer.code(), Code::AlreadyExists, "{answer}");
        let asked = plugin.recorder.asked.lock().pop().unwrap();
        assert_eq!((asked.namespace.as_str(), asked.parent.as_str()), ("testsuite", parent_here.as_str()));
        assert_eq!(asked.target.as_deref(), Some(target.as_str()));
        let info = plugin.stat(&target).await.unwrap();
        assert_eq!((info.kind(), info.parent.as_str()), (Kind::Committed, parent_there.as_str()));
        (parent_here, parent_there) = (made.name, target);
    }
    let mounts = plugin.prepare("box", &parent_there).await.unwrap();
    let mounted = Mounted::new(&mounts, &plugin.place());
    let names: Vec<_> = look(mounted.path()).into_keys().collect();
    assert_eq!(names, ["bottom", "middle", "top"]);
    drop(mounted);
    plugin.containerd.take().unwrap().stop().await;
}

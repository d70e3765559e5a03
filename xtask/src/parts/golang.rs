//! Clients and containerds that are built with Go where it is present.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use super::Outcome;
use crate::{
    lab::Result,
    shell::{cache, has, quiet},
};

/// One thing to build.
pub struct Tool {
    pub name: &'static str,
    /// Where it goes in the cache folder: all its programs, nothing else.
    folder: &'static str,
    module: &'static str,
    version: &'static str,
    /// Packages of the module, each becoming one program.
    packages: &'static [&'static str],
    /// A test binary instead of a program.
    test: bool,
    tags: &'static str,
    /// A variable of the linker that carries the version.
    version_variable: &'static str,
}

/// Most wanted first: a setup that is cut short has the better part.
pub const TOOLS: &[Tool] = &[
    Tool {
        name: "containerd 2.4",
        folder: "containerd-2.4.2/bin",
        module: "github.com/containerd/containerd/v2",
        version: "v2.4.2",
        packages: &["cmd/containerd", "cmd/ctr", "cmd/containerd-shim-runc-v2"],
        test: false,
        // What needs C libraries, and none of these snapshotters is used here.
        tags: "no_btrfs no_devmapper no_zfs",
        version_variable: "github.com/containerd/containerd/v2/version.Version",
    },
    Tool {
        name: "crictl",
        folder: "crictl-1.36.0",
        module: "sigs.k8s.io/cri-tools",
        version: "v1.36.0",
        packages: &["cmd/crictl"],
        test: false,
        tags: "",
        version_variable: "sigs.k8s.io/cri-tools/pkg/version.Version",
    },
    Tool {
        name: "critest",
        folder: "critest-1.36.0",
        module: "sigs.k8s.io/cri-tools",
        version: "v1.36.0",
        packages: &["cmd/critest"],
        test: true,
        tags: "",
        version_variable: "",
    },
    Tool {
        name: "nerdctl",
        folder: "nerdctl-2.3.5",
        module: "github.com/containerd/nerdctl/v2",
        version: "v2.3.5",
        packages: &["cmd/nerdctl"],
        test: false,
        tags: "",
        version_variable: "github.com/containerd/nerdctl/v2/pkg/version.Version",
    },
];

pub fn build(tool: &Tool) -> Result<Outcome> {
    let place = cache()?.join(tool.folder);
    if place.exists() {
        return Ok(Outcome::Kept);
    }
    if std::env::var("FLOTILLA_GO").is_ok_and(|value| value == "0") {
        return Ok(Outcome::Skipped("FLOTILLA_GO=0".into()));
    }
    if !has("go") {
        return Ok(Outcome::Skipped("no Go on this machine".into()));
    }
    let work = cache()?.join(format!("go-{}", tool.name.replace(' ', "-")));
    let _left_by_a_setup_that_was_cut_short = fs::remove_dir_all(&work);
    let made = in_wrapper(tool, &work).and_then(|bin| {
        let parent = place.parent().expect("a place in the cache");
        fs::create_dir_all(parent).map_err(|error| error.to_string())?;
        fs::rename(&bin, &place).map_err(|error| format!("keeping {}: {error}", tool.name))?;
        Ok(Outcome::Done)
    });
    let _scratch = fs::remove_dir_all(&work);
    made
}

/// Builds inside a module of ours that requires the tool's: `go install` refuses modules that replace
/// others, and modules whose list of versions the proxy does not serve.
fn in_wrapper(tool: &Tool, work: &Path) -> Result<PathBuf> {
    let bin = work.join("bin");
    fs::create_dir_all(&bin).map_err(|error| format!("making {}: {error}", bin.display()))?;
    let imports: String =
        tool.packages.iter().map(|package| format!("import _ \"{}/{package}\"\n", tool.module)).collect();
    fs::write(work.join("tools.go"), format!("//go:build tools\n\npackage tools\n\n{imports}"))
        .map_err(|error| error.to_string())?;
    quiet(go(work).args(["mod", "init", "example.test/wrap"]))?;
    quiet(go(work).args(["mod", "edit", "-require", &format!("{}@{}", tool.module, tool.version)]))?;
    if tool.name == "nerdctl" {
        without_tigron(work)?;
    }
    let mut flags = "-s -w".to_owned();
    if !tool.version_variable.is_empty() {
        flags.push_str(&format!(" -X {}={}", tool.version_variable, tool.version.trim_start_matches('v')));
    }
    for package in tool.packages {
        let mut build = go(work);
        build.args(if tool.test { &["test", "-c"][..] } else { &["build"] });
        build.args(["-trimpath", "-ldflags", &flags, "-tags", tool.tags, "-o"]);
        let name = Path::new(package).file_name().expect("a package has a name");
        quiet(build.arg(bin.join(name)).arg(format!("{}/{package}", tool.module)))?;
    }
    Ok(bin)
}

/// nerdctl's test helpers require a module that exists only inside its repository.
fn without_tigron(work: &Path) -> Result<()> {
    let stub = work.join("tigron");
    fs::create_dir_all(stub.join("tig"))
        .and_then(|()| fs::write(stub.join("go.mod"), "module github.com/containerd/nerdctl/mod/tigron\n"))
        .and_then(|()| {
            fs::write(
                stub.join("tig/tig.go"),
                "package tig\n\ntype T interface { Helper(); FailNow(); Fail(); Log(args ...interface{}); Name() string; TempDir() string }\n",
            )
        })
        .map_err(|error| format!("writing a stand-in for tigron: {error}"))?;
    let replace = format!("github.com/containerd/nerdctl/mod/tigron={}", stub.display());
    quiet(go(work).args(["mod", "edit", "-replace", &replace])).map(|_| ())
}

/// Go at low priority, since a build takes minutes of every core.
fn go(work: &Path) -> Command {
    let mut go = Command::new("nice");
    go.args(["-n", "19", "go"]).current_dir(work);
    go.env("GOFLAGS", "-mod=mod -buildvcs=false").env("GOTOOLCHAIN", "local");
    // The checksum database is another service; the proxy that this machine is set to is enough.
    go.env("GOSUMDB", "off");
    go
}

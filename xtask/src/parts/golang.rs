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
    /// Packages of the module, each becoming one program; the module itself is "".
    packages: &'static [&'static str],
    /// A test binary instead of a program.
    test: bool,
    tags: &'static str,
    /// A variable of the linker that carries the version.
    version_variable: &'static str,
    /// What a module of ours that requires it must replace.
    replace: fn(&Tool, &Path) -> Result<()>,
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
        replace: nothing,
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
        replace: nothing,
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
        replace: nothing,
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
        replace: tigron,
    },
    Tool {
        name: "crane",
        folder: "crane-0.22.1",
        module: "github.com/google/go-containerregistry",
        version: "v0.22.1",
        packages: &["cmd/crane"],
        test: false,
        tags: "",
        version_variable: "",
        replace: nothing,
    },
    Tool {
        name: "oras",
        folder: "oras-1.3.6",
        module: "oras.land/oras",
        version: "v1.3.6",
        packages: &["cmd/oras"],
        test: false,
        tags: "",
        version_variable: "",
        replace: nothing,
    },
    Tool {
        name: "regctl",
        folder: "regctl-0.11.7",
        module: "github.com/regclient/regclient",
        version: "v0.11.7",
        packages: &["cmd/regctl"],
        test: false,
        tags: "",
        version_variable: "",
        replace: nothing,
    },
    Tool {
        name: "the OCI conformance suite",
        folder: "conformance-2026.08.31",
        module: "github.com/opencontainers/distribution-spec/conformance",
        version: "v0.0.0-20260831232431-97274622c111",
        packages: &[""],
        test: false,
        tags: "",
        version_variable: "",
        replace: nothing,
    },
];

/// Built only when asked for: it takes a quarter of an hour.
pub const KUBELET: Tool = Tool {
    name: "kubelet",
    folder: "kubelet-1.37.2",
    module: "k8s.io/kubernetes",
    version: "v1.37.2",
    packages: &["cmd/kubelet"],
    test: false,
    tags: "",
    version_variable: "k8s.io/component-base/version.gitVersion",
    replace: staging,
};

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
    let path = |package: &str| format!("{}/{package}", tool.module).trim_end_matches('/').to_owned();
    let imports: String =
        tool.packages.iter().map(|package| format!("import _ \"{}\"\n", path(package))).collect();
    fs::write(work.join("tools.go"), format!("//go:build tools\n\npackage tools\n\n{imports}"))
        .map_err(|error| error.to_string())?;
    quiet(go(work).args(["mod", "init", "example.test/wrap"]))?;
    quiet(go(work).args(["mod", "edit", "-require", &format!("{}@{}", tool.module, tool.version)]))?;
    (tool.replace)(tool, work)?;
    let mut flags = "-s -w".to_owned();
    if !tool.version_variable.is_empty() {
        flags.push_str(&format!(" -X {}={}", tool.version_variable, tool.version));
    }
    for package in tool.packages {
        let mut build = go(work);
        build.args(if tool.test { &["test", "-c"][..] } else { &["build"] });
        build.args(["-trimpath", "-ldflags", &flags, "-tags", tool.tags, "-o"]);
        let package = path(package);
        let name = Path::new(&package).file_name().expect("a package has a name");
        quiet(build.arg(bin.join(name)).arg(&package))?;
    }
    Ok(bin)
}

fn nothing(_: &Tool, _: &Path) -> Result<()> {
    Ok(())
}

/// nerdctl's test helpers require a module that exists only inside its repository.
fn tigron(_: &Tool, work: &Path) -> Result<()> {
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
    replace(work, "github.com/containerd/nerdctl/mod/tigron", &stub.display().to_string())
}

/// Kubernetes takes its own libraries from a folder of its repository, as version v0.0.0. They are also
/// published, as v0.<minor>.<patch> of its own v1.<minor>.<patch>.
fn staging(tool: &Tool, work: &Path) -> Result<()> {
    let source = format!("{}@{}", tool.module, tool.version);
    let downloaded = quiet(go(work).args(["mod", "download", "-json", &source]))?;
    let place = downloaded.split_once("\"GoMod\": \"").and_then(|(_, rest)| rest.split('"').next());
    let place = place.ok_or_else(|| format!("go mod download names no go.mod of {source}"))?;
    let text = fs::read_to_string(place).map_err(|error| format!("reading {place}: {error}"))?;
    let version = tool.version.replacen("v1.", "v0.", 1);
    for module in of_the_repository(&text) {
        replace(work, module, &format!("{module}@{version}"))?;
    }
    Ok(())
}

/// The modules that a go.mod requires as v0.0.0 or replaces by a folder, each once.
fn of_the_repository(go_mod: &str) -> Vec<&str> {
    let mut found: Vec<&str> = go_mod
        .lines()
        .filter_map(|line| {
            let line = line.trim_start().trim_start_matches("require ").trim_start_matches("replace ");
            let mut words = line.split_whitespace();
            let module = words.next()?;
            matches!(words.next(), Some("v0.0.0" | "=>")).then_some(module)
        })
        .collect();
    found.sort_unstable();
    found.dedup();
    found
}

fn replace(work: &Path, module: &str, by: &str) -> Result<()> {
    quiet(go(work).args(["mod", "edit", "-replace", &format!("{module}={by}")])).map(|_| ())
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

#[cfg(test)]
mod tests {
    use super::of_the_repository;

    #[test]
    fn modules_of_the_same_repository_are_found_in_every_form() {
        let text = "module k8s.io/kubernetes\n\nrequire example.test/a v0.0.0\nrequire (\n\tk8s.io/api v0.0.0\n\t\
                    golang.org/x/sys v0.30.0 // indirect\n\tk8s.io/cri-api v0.0.0 // indirect\n)\n\nreplace (\n\t\
                    k8s.io/api => ./staging/src/k8s.io/api\n)\nreplace k8s.io/kubectl => ./staging/src/k8s.io/kubectl\n";
        let found = ["example.test/a", "k8s.io/api", "k8s.io/cri-api", "k8s.io/kubectl"];
        assert_eq!(of_the_repository(text), found);
    }
}

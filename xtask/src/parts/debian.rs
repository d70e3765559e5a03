//! Programs of other Debian suites than this machine's, unpacked and not installed.
//!
//! A second apt state folder gets a source list that repeats the machine's own source with another
//! suite's name, so that a mirror or a proxy that the machine is set to goes on being used.

use std::{fs, path::Path};

use super::Outcome;
use crate::{
    lab::{Result, containerd::BINARIES, is_of},
    shell::{cache, command, quiet},
};

/// A package, and what is taken out of it.
pub struct Package {
    name: &'static str,
    /// What the cache calls it, before its version.
    known_as: &'static str,
    /// Where its programs lie.
    folder: &'static str,
    programs: &'static [&'static str],
}

pub const CONTAINERD: Package =
    Package { name: "containerd", known_as: "containerd", folder: "usr/bin", programs: &BINARIES };
pub const DOCKER: Package =
    Package { name: "docker.io", known_as: "docker", folder: "usr/sbin", programs: &["dockerd"] };

/// A series of versions, and the suites that carry it, the first that has it wins.
pub type Series = (&'static str, &'static [&'static str]);

pub const CONTAINERDS: [Series; 3] =
    [("1.6", &["bookworm"]), ("1.7", &["trixie"]), ("2.1", &["forky", "sid"])];
/// Beside the one that is installed.
pub const DOCKERS: [Series; 2] = [("26", &["trixie"]), ("28", &["forky", "sid"])];

impl Package {
    /// Gets one series, unless it is here.
    pub fn keep(&self, (series, suites): Series, is_here: bool) -> Result<Outcome> {
        if is_here {
            return Ok(Outcome::Kept);
        }
        let mut last = String::new();
        for suite in suites {
            match self.fetch(series, suite) {
                Ok(()) => return Ok(Outcome::Done),
                Err(failure) => last = failure.to_string(),
            }
        }
        Err(last.into())
    }

    fn fetch(&self, series: &str, suite: &str) -> Result<()> {
        let work = cache()?.join(format!("apt-{suite}"));
        fs::create_dir_all(work.join("state/lists/partial"))
            .and_then(|()| fs::create_dir_all(work.join("cache/archives/partial")))
            .and_then(|()| fs::write(work.join("sources.list"), format!("{}\n", source(suite)?)))
            .map_err(|error| format!("making {}: {error}", work.display()))?;
        quiet(apt("apt-get", &work).args(["-q", "update"]))?;
        quiet(apt("apt-get", &work).args(["-q", "download", self.name]))?;
        let unpacked = self.unpack(series, &work);
        let _scratch = fs::remove_dir_all(&work);
        unpacked
    }

    /// Takes the programs out of the package, into a folder named after its version.
    fn unpack(&self, series: &str, work: &Path) -> Result<()> {
        let deb = fs::read_dir(work)
            .ok()
            .and_then(|entries| {
                entries.flatten().find(|entry| entry.path().extension().is_some_and(|e| e == "deb"))
            })
            .ok_or("apt-get download left no package")?
            .path();
        let version = quiet(command("dpkg-deb").arg("-f").arg(&deb).arg("Version"))?;
        let version = version.trim().split(['~', '+', '-']).next().unwrap_or_default();
        if !is_of(version, series) {
            return Err(format!("this suite has {} {version}, not {series}", self.name).into());
        }
        let tree = work.join("tree");
        quiet(command("dpkg-deb").arg("-x").arg(&deb).arg(&tree))?;
        fs::create_dir_all(tree.join("bin")).map_err(|error| error.to_string())?;
        for program in self.programs {
            fs::rename(tree.join(self.folder).join(program), tree.join("bin").join(program))
                .map_err(|error| format!("taking {program} out of the package: {error}"))?;
        }
        for rest in ["usr", "etc", "lib", "var"] {
            let _not_there = fs::remove_dir_all(tree.join(rest));
        }
        fs::rename(&tree, cache()?.join(format!("{}-{version}", self.known_as)))
            .map_err(|error| format!("keeping {} {version}: {error}", self.name).into())
    }
}

/// An apt program that works on a state of its own.
fn apt(program: &str, work: &Path) -> std::process::Command {
    let option = |name: &str, value: &str| format!("-o{name}={}", work.join(value).display());
    let mut apt = command(program);
    apt.current_dir(work)
        .arg(option("Dir::State", "state"))
        .arg(option("Dir::Cache", "cache"))
        .arg(option("Dir::Etc::sourcelist", "sources.list"))
        .args(["-oDir::State::status=/var/lib/dpkg/status", "-oDir::Etc::sourceparts=/dev/null"])
        // Unprivileged download fails where the cache lies below root's home.
        .arg("-oAPT::Sandbox::User=root");
    apt
}

/// The machine's own Debian source, as one line, for another suite.
fn source(suite: &str) -> std::io::Result<String> {
    let mut places = vec!["/etc/apt/sources.list".into()];
    if let Ok(entries) = fs::read_dir("/etc/apt/sources.list.d") {
        places.extend(entries.flatten().map(|entry| entry.path()));
    }
    places.sort();
    for place in places {
        let text = fs::read_to_string(&place).unwrap_or_default();
        let line = match place.extension().and_then(|extension| extension.to_str()) {
            Some("sources") => deb822(&text, suite),
            Some("list") => one_line(&text, suite),
            Some(_) | None => None,
        };
        if let Some(line) = line {
            return Ok(line);
        }
    }
    Err(std::io::Error::other("no source of Debian itself in /etc/apt"))
}

/// The URI of this machine's own archive, which debootstrap takes too.
pub fn archive() -> Result<String> {
    let line = source("x").map_err(|error| error.to_string())?;
    let uri = line.split(' ').find(|word| word.contains("://")).ok_or("a source line without a URI")?;
    Ok(uri.to_owned())
}

/// The main archive ends in `/debian`; security and third parties do not.
fn is_archive(uri: &str) -> bool {
    uri.trim_end_matches('/').ends_with("/debian")
}

fn deb822(text: &str, suite: &str) -> Option<String> {
    text.split("\n\n").find_map(|stanza| {
        let field = |name: &str| {
            stanza.lines().find_map(|line| line.strip_prefix(name)).map(str::trim).filter(|v| !v.is_empty())
        };
        let uri = field("URIs:")?.split_whitespace().find(|uri| is_archive(uri))?;
        let key = field("Signed-By:").map(|key| format!("[signed-by={key}] ")).unwrap_or_default();
        Some(format!("deb {key}{uri} {suite} main"))
    })
}

fn one_line(text: &str, suite: &str) -> Option<String> {
    text.lines().filter(|line| line.starts_with("deb ")).find_map(|line| {
        let options =
            line.split_once('[').and_then(|(_, rest)| rest.split_once(']')).map(|(options, _)| options);
        let uri = line.split_whitespace().find(|word| is_archive(word))?;
        let options = options.map(|options| format!("[{options}] ")).unwrap_or_default();
        Some(format!("deb {options}{uri} {suite} main"))
    })
}

#[cfg(test)]
mod tests {
    use super::{deb822, one_line};

    #[test]
    fn a_machines_own_source_is_repeated_for_another_suite() {
        let text = "Types: deb\nURIs: http://mirror.test/debian\nSuites: bookworm\nSigned-By: /k.gpg\n\nTypes: deb\nURIs: http://mirror.test/debian-security\n";
        assert_eq!(deb822(text, "sid").unwrap(), "deb [signed-by=/k.gpg] http://mirror.test/debian sid main");
        let text = "# deb http://old.test/debian x main\ndeb [arch=amd64] http://mirror.test/debian/ bookworm main contrib\n";
        assert_eq!(one_line(text, "sid").unwrap(), "deb [arch=amd64] http://mirror.test/debian/ sid main");
        assert_eq!(one_line("deb http://mirror.test/debian-security x main", "sid"), None);
    }
}

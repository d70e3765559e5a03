//! The built daemon with settings of its own.

use std::{
    collections::BTreeMap,
    fs,
    io::{Read, Write},
    net::TcpStream,
    os::unix::net::UnixDatagram,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use super::{
    Result,
    net::Namespace,
    process::{PATIENCE, Process, output},
};

/// How often a wait for the daemon's readiness looks whether it has died instead.
const LOOK_AFTER: Duration = Duration::from_millis(200);

/// The settings file: section, key, and the value as TOML writes it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Settings(BTreeMap<String, BTreeMap<String, String>>);

impl Settings {
    /// A key with a value that is TOML already: `set("store", "quota", "\"1GiB\"")`.
    pub(crate) fn set(&mut self, section: &str, key: &str, value: impl Into<String>) -> &mut Settings {
        self.0.entry(section.to_owned()).or_default().insert(key.to_owned(), value.into());
        self
    }

    /// A key with a text.
    pub(crate) fn text(&mut self, section: &str, key: &str, text: &str) -> &mut Settings {
        self.set(section, key, format!("{text:?}"))
    }

    /// A key with a path.
    pub(crate) fn path(&mut self, section: &str, key: &str, path: &Path) -> &mut Settings {
        self.set(section, key, format!("{path:?}"))
    }

    /// A key with a list of texts.
    pub(crate) fn list(&mut self, section: &str, key: &str, texts: &[String]) -> &mut Settings {
        self.set(section, key, format!("{texts:?}"))
    }

    /// Removes a key, so that the default holds.
    pub(crate) fn unset(&mut self, section: &str, key: &str) -> &mut Settings {
        self.0.entry(section.to_owned()).or_default().remove(key);
        self
    }

    pub(crate) fn to_toml(&self) -> String {
        let section = |(name, keys): (&String, &BTreeMap<String, String>)| {
            let keys: String = keys.iter().map(|(key, value)| format!("{key} = {value}\n")).collect();
            format!("[{name}]\n{keys}")
        };
        self.0.iter().map(section).collect()
    }
}

/// A daemon that can be stopped and started again on the same state.
pub(crate) struct Flotilla {
    program: PathBuf,
    dir: PathBuf,
    namespace: Option<Namespace>,
    process: Option<Process>,
}

impl Flotilla {
    /// Writes `<dir>/config.toml`, starts, and waits until the daemon says that it is ready.
    pub(crate) fn start(
        program: &Path,
        dir: PathBuf,
        settings: &Settings,
        namespace: Option<Namespace>,
    ) -> Result<Flotilla> {
        let mut flotilla = Flotilla { program: program.to_owned(), dir, namespace, process: None };
        flotilla.configure(settings)?;
        flotilla.start_again()?;
        Ok(flotilla)
    }

    /// Writes other settings, for the next start.
    pub(crate) fn configure(&self, settings: &Settings) -> Result<()> {
        fs::create_dir_all(&self.dir)
            .and_then(|()| fs::write(self.dir.join("config.toml"), settings.to_toml()))
            .map_err(|error| format!("writing the settings in {}: {error}", self.dir.display()).into())
    }

    /// Starts after `kill` or `stop`, and waits for READY=1 as systemd does.
    pub(crate) fn start_again(&mut self) -> Result<()> {
        let socket = self.dir.join("notify.sock");
        let _of_an_earlier_start = fs::remove_file(&socket);
        let notify = UnixDatagram::bind(&socket)
            .and_then(|notify| notify.set_read_timeout(Some(LOOK_AFTER)).map(|()| notify))
            .map_err(|error| format!("opening {}: {error}", socket.display()))?;
        let mut command = self.command(&["serve"]);
        command.env("NOTIFY_SOCKET", &socket);
        let mut process = Process::start("flotilla", command, &self.log(), super::lab_of(&self.dir))?;
        let deadline = Instant::now() + PATIENCE;
        let mut message = [0; 4096];
        loop {
            let len = notify.recv(&mut message).unwrap_or(0);
            let text = String::from_utf8_lossy(message.get(..len).unwrap_or_default());
            if text.lines().any(|line| line == "READY=1") {
                break;
            }
            if !process.runs() || Instant::now() > deadline {
                let said = process.lines().join("\n");
                return Err(format!("flotilla did not get ready; it said:\n{said}").into());
            }
        }
        self.process = Some(process);
        Ok(())
    }

    /// The program with this daemon's settings, in its network.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = match &self.namespace {
            Some(namespace) => namespace.command(&self.program.display().to_string()),
            None => Command::new(&self.program),
        };
        command.args(arguments).arg("--config").arg(self.dir.join("config.toml"));
        command
    }

    /// `flotilla status --json`.
    pub(crate) fn status(&self) -> Result<String> {
        output(self.command(&["status", "--json"]))
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.dir.join("flotilla.log")
    }

    pub(crate) fn process(&mut self) -> Result<&mut Process> {
        self.process.as_mut().ok_or_else(|| "this flotilla is stopped".into())
    }

    /// SIGTERM, and waits for its end.
    pub(crate) fn stop(&mut self) -> Result<()> {
        let mut process = self.process.take().ok_or("this flotilla is stopped")?;
        process.terminate().map(|_| ())
    }

    /// Leaves it running when this value goes.
    pub(crate) fn leave(mut self) {
        self.process.take().into_iter().for_each(Process::leave);
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) -> Result<()> {
        let mut process = self.process.take().ok_or("this flotilla is stopped")?;
        process.kill().map(|_| ())
    }

    /// Where the door named so listens, as logged: `listening door=admin addr=127.0.0.1:41001`.
    pub(crate) fn address_of(&self, door: &str) -> Result<String> {
        let process = self.process.as_ref().ok_or("this flotilla is stopped")?;
        process.wait_until(&format!("listening door={door}"), |lines| {
            lines.iter().rev().map(|line| plain(line)).find_map(|line| {
                let rest = line.split_once("listening")?.1;
                let field = |name: &str| {
                    let value = rest.split_once(&format!("{name}="))?.1.split(' ').next()?;
                    Some(value.trim_matches('"').to_owned())
                };
                (field("door").as_deref() == Some(door)).then(|| field("addr")).flatten()
            })
        })
    }

    /// A line of the daemon's `/proc/<id>/status`, in MiB.
    pub(crate) fn memory_mib(&self, what: &str) -> Result<u64> {
        let id = self.process.as_ref().ok_or("this flotilla is stopped")?.id();
        let status =
            std::fs::read_to_string(format!("/proc/{id}/status")).map_err(|error| error.to_string())?;
        let line = status.lines().find_map(|line| line.strip_prefix(what)?.strip_prefix(':'));
        let kib: Option<u64> = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
        kib.map(|kib| kib / 1024).ok_or_else(|| format!("no figure `{what}` of process {id}").into())
    }

    /// The metrics page.
    pub(crate) fn metrics(&self) -> Result<Metrics> {
        self.get("/metrics").map(Metrics)
    }

    /// A page of the admin door, without its head.
    pub(crate) fn get(&self, path: &str) -> Result<String> {
        let address = self.address_of("admin")?;
        let request = format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n");
        let answer = match &self.namespace {
            None => fetch(&address, &request).map_err(|error| format!("GET {address}{path}: {error}"))?,
            Some(namespace) => {
                // bash speaks TCP; a curl is one package more.
                let (host, port) = address.rsplit_once(':').ok_or("an address without a port")?;
                let mut bash = namespace.command("bash");
                bash.args([
                    "-c",
                    "exec 3<>/dev/tcp/$0/$1 && printf %s \"$2\" >&3 && cat <&3",
                    host,
                    port,
                    &request,
                ]);
                output(bash)?
            }
        };
        let (_, body) = answer.split_once("\r\n\r\n").ok_or_else(|| format!("no page in {answer:?}"))?;
        Ok(body.to_owned())
    }
}

/// A log line without the colours of a terminal.
fn plain(line: &str) -> String {
    let mut parts = line.split('\u{1b}');
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, part| text + part.split_once('m').map_or(part, |(_, rest)| rest))
}

fn fetch(address: &str, request: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// A page in Prometheus' text form.
pub(crate) struct Metrics(String);

impl Metrics {
    /// The sum of all series of a name whose labels contain each of `labels`, for example
    /// `sum("flotilla_bytes_total", &["source=\"peer\""])`.
    pub(crate) fn sum(&self, name: &str, labels: &[&str]) -> f64 {
        let of_name = self.0.lines().filter_map(|line| line.strip_prefix(name));
        let matching = of_name.filter(|rest| {
            (rest.starts_with('{') || rest.starts_with(' '))
                && labels.iter().all(|label| rest.contains(label))
        });
        matching.filter_map(|rest| rest.rsplit_once(' ')?.1.parse::<f64>().ok()).sum()
    }

    pub(crate) fn page(&self) -> &str {
        &self.0
    }
}

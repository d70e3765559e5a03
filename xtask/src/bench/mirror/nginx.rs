//! nginx with sendfile, as a registry of blobs that are files.

use std::{
    fs::{self, File},
    io::{BufWriter, Write},
    net::TcpListener,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    lab::{Result, process::Process},
    shell::quiet,
};

/// A body goes out in one piece of the kernel's; a worker for every core.
const CONFIG: &str = "\
daemon off;
user root;
worker_processes auto;
pid PLACE/nginx.pid;
error_log PLACE/error.log;
events { worker_connections 256; }
http {
  access_log off;
  sendfile on;
  tcp_nopush on;
  client_body_temp_path PLACE/body;
  proxy_temp_path PLACE/proxy;
  fastcgi_temp_path PLACE/fastcgi;
  uwsgi_temp_path PLACE/uwsgi;
  scgi_temp_path PLACE/scgi;
  server { listen HOST; root PLACE/root; default_type application/octet-stream; }
}
";

/// A repository that the mirror takes for any other.
const BLOBS: &str = "v2/bench/mirror/blobs";

pub struct Nginx {
    place: PathBuf,
    host: String,
    process: Process,
}

impl Drop for Nginx {
    /// In order: its workers would outlive a master that is killed, and nginx drops the mark from their environment.
    fn drop(&mut self) {
        let _it_may_have_ended = self.process.terminate();
    }
}

pub fn version() -> Result<String> {
    // It says so on the other output.
    let said =
        Command::new(PROGRAM).arg("-v").output().map_err(|error| format!("starting nginx: {error}"))?;
    let said = String::from_utf8_lossy(&said.stderr).into_owned();
    Ok(said.trim().rsplit('/').next().unwrap_or_default().to_owned())
}

/// The PATH of a plain root shell may lack its folder.
const PROGRAM: &str = "/usr/sbin/nginx";

impl Nginx {
    pub fn start(lab: &Path) -> Result<Nginx> {
        let place = lab.join("nginx");
        let host = free_address()?;
        let config = place.join("nginx.conf");
        let text = CONFIG.replace("PLACE", &place.display().to_string()).replace("HOST", &host);
        fs::create_dir_all(place.join("root").join(BLOBS))
            .and_then(|()| fs::write(&config, text))
            .map_err(|error| format!("making nginx's folder {}: {error}", place.display()))?;
        let mut command = Command::new(PROGRAM);
        command.arg("-c").arg(&config).arg("-e").arg(place.join("error.log"));
        let process = Process::start("nginx", command, &place.join("nginx.log"), lab)?;
        // It logs nothing when it is ready.
        for _ in 0..100 {
            if std::net::TcpStream::connect(&host).is_ok() {
                return Ok(Nginx { place, host, process });
            }
            std::thread::park_timeout(std::time::Duration::from_millis(50));
        }
        Err(format!("nginx does not listen at {host}: {}", process.lines().join("\n")).into())
    }

    /// `host:port`.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Makes a blob of `len` bytes that are nowhere the same; its path in a URL.
    pub fn publish(&self, len: u64) -> Result<String> {
        let folder = self.place.join("root").join(BLOBS);
        let scratch = folder.join("scratch");
        write_noise(&scratch, len).map_err(|error| format!("writing a blob: {error}"))?;
        let sum = quiet(Command::new("sha256sum").arg(&scratch))?;
        let name = format!("sha256:{}", sum.split(' ').next().unwrap_or_default());
        fs::rename(&scratch, folder.join(&name)).map_err(|error| format!("naming a blob: {error}"))?;
        Ok(format!("/{BLOBS}/{name}"))
    }

    /// Makes room for the next.
    pub fn withdraw(&self, path: &str) -> Result<()> {
        let file = self.place.join("root").join(path.trim_start_matches('/'));
        fs::remove_file(&file).map_err(|error| format!("removing {}: {error}", file.display()).into())
    }
}

fn free_address() -> Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    listener.map(|address| address.to_string()).map_err(|error| format!("a free port: {error}").into())
}

/// xorshift64*, a function of the length.
fn write_noise(path: &Path, len: u64) -> std::io::Result<()> {
    let mut out = BufWriter::with_capacity(1 << 20, File::create(path)?);
    let mut state = len | 1;
    for _ in 0..len / 8 {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        out.write_all(&state.wrapping_mul(0x2545_F491_4F6C_DD1D).to_le_bytes())?;
    }
    out.flush()
}

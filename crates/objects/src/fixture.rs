//! A real S3 server for tests of this crate and of others: versitygw, which `e2e/run setup` builds.
#![expect(
    clippy::disallowed_methods,
    reason = "a test finds a program of this machine and waits for it with a limit"
)]

use std::ffi::OsStr;
use std::fs;
use std::io::{self, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use graftwork_contract::remote as entry;
use graftwork_contract::store::BucketStore;

/// Who asks.
pub const KEY_ID: &str = "AKIATEST4711";
/// With which key; no message may show it.
pub const KEY: &str = "hidden-4711/key";
/// Where the server says it is.
pub const REGION: &str = "eu-test-1";
/// What has to be allowed to reach it.
pub const NETWORK: &str = "127.0.0.1/32";

/// Time until it answers.
const PATIENCE: Duration = Duration::from_secs(20);
/// Ports that it may get: none of those that a connection gets as its own, else one of a program beside us may have
/// it, and a connection to a port on which nobody listens yet may become one with itself; and no node port.
const PORTS: std::ops::Range<u16> = 12_000..30_000;
/// Ports to try, one after the other.
const TRIES: u32 = 20;

/// A server of one test's own on the loopback, with one bucket. It ends with this value.
#[derive(Debug)]
pub struct Server {
    dir: PathBuf,
    bucket: String,
    port: u16,
    process: Child,
}

/// What `e2e/run setup` builds.
fn program() -> Option<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    let folders = fs::read_dir(cache.or(home)?.join("graftwork")).ok()?;
    let is_ours = |name: &OsStr| name.to_string_lossy().starts_with("versitygw-");
    folders
        .flatten()
        .filter(|entry| is_ours(&entry.file_name()))
        .map(|entry| entry.path().join("versitygw"))
        .filter(|program| program.is_file())
        .max()
}

/// A port that nobody listens on, for a server that can't say which one it got: from another place on for each
/// process and call.
///
/// # Errors
/// There is none.
pub fn free_port() -> io::Result<u16> {
    static CALLS: AtomicU32 = AtomicU32::new(0);
    let call = CALLS.fetch_add(1, Ordering::Relaxed);
    let seed = std::process::id().wrapping_mul(7_919);
    let count = u32::from(PORTS.end - PORTS.start);
    let mut ports = (0..count).filter_map(|step| {
        let place = seed.wrapping_add(call).wrapping_add(step) % count;
        u16::try_from(place).ok().map(|place| PORTS.start + place)
    });
    ports
        .find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok())
        .ok_or_else(|| io::Error::other(format!("no free port in {PORTS:?}")))
}

impl Server {
    /// Starts a server that keeps its objects, and the Secret for it, below `dir`. None, and said so, where this
    /// machine has no such program.
    ///
    /// # Errors
    /// One that does not start.
    pub fn start(dir: &Path, bucket: &str) -> io::Result<Option<Self>> {
        let Some(program) = program() else {
            let thread = std::thread::current();
            let test = thread.name().unwrap_or_default();
            // Tests' own output is held back.
            writeln!(io::stderr(), "skipped: no versitygw ({test})")?;
            return Ok(None);
        };
        fs::create_dir_all(dir.join("data").join(bucket))?;
        for _ in 0..TRIES {
            let port = free_port()?;
            let process = Command::new(&program)
                .args(["--access", KEY_ID, "--secret", KEY, "--region", REGION])
                .args(["--port", &format!("127.0.0.1:{port}"), "posix"])
                .arg(dir.join("data"))
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()?;
            let mut server = Self {
                dir: dir.to_path_buf(),
                bucket: bucket.to_owned(),
                port,
                process,
            };
            // Free a moment ago: a server that can't have its port ends.
            if server.answers()? {
                server.write_secret(KEY)?;
                return Ok(Some(server));
            }
        }
        let message = format!("{} ended on each of {TRIES} ports", program.display());
        Err(io::Error::other(message))
    }

    /// Waits until it answers; false where it ended.
    fn answers(&mut self) -> io::Result<bool> {
        let start = Instant::now();
        loop {
            let connected = TcpStream::connect(("127.0.0.1", self.port));
            // Another's server on this port answers too: ours has ended then, or does in a moment.
            std::thread::sleep(Duration::from_millis(20));
            if self.process.try_wait()?.is_some() {
                return Ok(false);
            }
            match connected {
                Ok(_) => return Ok(true),
                Err(error) if start.elapsed() > PATIENCE => return Err(error),
                Err(_) => {}
            }
        }
    }

    /// Where it answers.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The folder of a mounted Secret.
    pub fn secret(&self) -> PathBuf {
        self.dir.join("secret")
    }

    /// Writes the Secret, with this key.
    ///
    /// # Errors
    /// The file system's.
    pub fn write_secret(&self, key: &str) -> io::Result<()> {
        fs::create_dir_all(self.secret())?;
        let endpoint = self.endpoint();
        for (name, text) in [
            (entry::S3_ENDPOINT, endpoint.as_str()),
            (entry::S3_REGION, REGION),
            (entry::S3_KEY_ID, KEY_ID),
            (entry::S3_KEY, key),
        ] {
            fs::write(self.secret().join(name), format!("{text}\n"))?;
        }
        Ok(())
    }

    /// What a process is told of a store there.
    pub fn config(&self, url: &str) -> BucketStore {
        BucketStore {
            url: url.to_owned(),
            secret: Some("keys".to_owned()),
            path: self.secret().display().to_string(),
            allowed_hosts: vec![NETWORK.to_owned()],
        }
    }

    /// Where the server keeps an object of its bucket.
    pub fn object(&self, key: &str) -> PathBuf {
        self.dir.join("data").join(&self.bucket).join(key)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

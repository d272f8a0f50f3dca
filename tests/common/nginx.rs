//! nginx as the peer of differential tests, started as Couloir is.

use std::path::PathBuf;

use super::proc::{Server, Setup, run};

/// The installed nginx; `NGINX_BIN` names another one.
pub struct Nginx;

impl Nginx {
    /// Starts it on `conf` and waits until every listener accepts.
    pub fn start(conf: &str) -> Server {
        Setup::new(conf).start(&Self::program())
    }

    /// Whether it can be run.
    pub fn available() -> bool {
        Self::program().is_file()
    }

    /// Its path.
    ///
    /// # Panics
    /// When it is not installed: a comparison without its other side must not pass.
    pub fn require() -> PathBuf {
        let program = Self::program();
        assert!(
            program.is_file(),
            "{} is missing: install it with `apt-get install nginx`, or name another one in NGINX_BIN",
            program.display()
        );
        program
    }

    /// Its release: (1, 22, 1).
    pub fn version() -> (u32, u32, u32) {
        let (_, _, text) = run(&Self::require(), &["-v"]);
        let number = text
            .trim()
            .rsplit('/')
            .next()
            .unwrap_or_default()
            .to_owned();
        let mut parts = number
            .split(|c: char| !c.is_ascii_digit())
            .map(|part| part.parse().unwrap_or(0));
        let mut next = || parts.next().unwrap_or(0);
        (next(), next(), next())
    }

    fn program() -> PathBuf {
        std::env::var_os("NGINX_BIN")
            .map_or_else(|| PathBuf::from("/usr/sbin/nginx"), PathBuf::from)
    }
}

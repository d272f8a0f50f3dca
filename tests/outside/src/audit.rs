//! A log sink that does not block: `audit_log PATH;`. The logger passes lines to a service in the background, which writes
//! them.

use std::path::PathBuf;
use std::sync::Arc;

use couloir::prelude::*;
use tokio::io::AsyncWriteExt;
use tokio::sync::{Mutex, mpsc};

pub struct Audit;

#[derive(Clone, Default)]
pub struct AuditConf {
    lines: Option<mpsc::Sender<Vec<u8>>>,
}

impl Conf for AuditConf {
    fn inherit(&mut self, outer: &Self) {
        inherit!(self, outer; lines);
    }
}

impl Module for Audit {
    const NAME: &'static str = "audit_log";
    type Conf = AuditConf;
    const DIRECTIVES: &'static [Directive<AuditConf>] = &[Directive::own(
        "audit_log",
        Place::ANY_HTTP,
        Args::Exactly(1),
        "`audit_log path;` Writes a line for each request: method, URI and status.",
        |c, s, b| {
            // more lines than this are lost rather than held in memory
            let (sender, lines) = mpsc::channel(1024);
            b.background(Arc::new(Writer {
                path: b.prefixed(s.str(0)?),
                lines: Mutex::new(lines),
            }));
            once(&mut c.lines, s, sender)
        },
    )];

    fn attach(conf: &Arc<AuditConf>, on: &mut Hooks) -> ConfResult<()> {
        if let Some(lines) = &conf.lines {
            on.log(Sink(lines.clone()));
        }
        Ok(())
    }
}

struct Sink(mpsc::Sender<Vec<u8>>);

impl Logger for Sink {
    fn log(&self, r: &mut Request) {
        let mut line = r.method_text().to_vec();
        line.push(b' ');
        line.extend_from_slice(&r.uri);
        line.extend_from_slice(format!(" {}\n", r.out.status).as_bytes());
        if self.0.try_send(line).is_err() {
            r.error(LogLevel::Warn, format_args!("audit log: a line is lost"));
        }
    }
}

/// Writes the lines for as long as the configuration is in force.
struct Writer {
    path: PathBuf,
    lines: Mutex<mpsc::Receiver<Vec<u8>>>,
}

#[async_trait]
impl BackgroundService for Writer {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        let mut lines = self.lines.lock().await;
        let mut options = tokio::fs::OpenOptions::new();
        let Ok(mut file) = options.create(true).append(true).open(&self.path).await else {
            return;
        };
        loop {
            let line = tokio::select! {
                line = lines.recv() => line,
                _ = shutdown.changed() => lines.try_recv().ok(),
            };
            let Some(line) = line else { break };
            if file.write_all(&line).await.is_err() || file.flush().await.is_err() {
                break;
            }
        }
    }
}

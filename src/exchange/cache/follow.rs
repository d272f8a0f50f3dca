//! Serving an object that another request is still storing.

use super::serve::present;
use crate::cache::{Live, Piece, Status};
use crate::contract::PassEnd;
use crate::contract::{Destination, Pass, Request};
use crate::delivery::output;
use std::future::poll_fn;
use std::io;
use std::sync::Arc;

/// Sends what has come of the object and what comes. If its origin breaks off, so does this response.
pub(super) async fn serve(
    r: &mut Request,
    pass: &Arc<Pass>,
    to: &Destination<'_>,
    live: &Arc<Live>,
) -> PassEnd {
    if let Some(outcome) = present(r, pass, to, (&live.head, &live.meta), Status::Hit) {
        return outcome;
    }
    if let Err(status) = output::start(r) {
        return PassEnd::Status(status);
    }
    if r.out.header_only {
        return PassEnd::Done;
    }
    match send(r, live).await {
        Ok(true) => {}
        Ok(false) => {
            r.aborted = true;
            r.keepalive = false;
            // what has come is sent, but it must not look complete
            let _ = output::flush(r).await;
            r.down.abort();
        }
        Err(e) => output::broken(r, &e),
    }
    PassEnd::Done
}

/// Sends the body at the client's pace; false where it broke off.
async fn send(r: &mut Request, live: &Live) -> io::Result<bool> {
    let (mut at, end) = r.output.only_range().unwrap_or((0, u64::MAX));
    r.output.set_offset(at);
    loop {
        let left = end.saturating_sub(at);
        if left == 0 {
            output::write(r, b"", true).await?;
            return Ok(true);
        }
        let mut piece = live.read(at, left);
        if !r.output.is_plain() {
            piece = piece.into_memory()?;
        }
        match piece {
            Piece::Memory(bytes) => {
                at += bytes.len() as u64;
                output::write(r, &bytes, false).await?;
            }
            Piece::File(file, offset, len) => {
                output::write_file(r, &file, offset, len).await?;
                at += len;
            }
            Piece::Pending => {
                output::flush(r).await?;
                let down = r.down.clone();
                tokio::select! {
                    biased;
                    () = live.wait(at) => {}
                    () = poll_fn(|cx| down.poll_closed(cx)) => {
                        return Err(io::ErrorKind::ConnectionAborted.into());
                    }
                }
            }
            Piece::End => {
                output::write(r, b"", true).await?;
                return Ok(true);
            }
            Piece::Broken => return Ok(false),
        }
    }
}

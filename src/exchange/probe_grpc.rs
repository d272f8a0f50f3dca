//! gRPC's health checking protocol (grpc.health.v1): one call of `Health/Check` over HTTP/2.

use crate::upstream::UpConn;
use bytes::{BufMut, Bytes, BytesMut};
use h2::client;
use http::{HeaderMap, Request, Version};
use std::future::poll_fn;

/// What the server said of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GrpcHealth {
    /// `grpc-status`.
    pub status: u32,
    /// Whether the service is SERVING; counts with status 0.
    pub serving: bool,
}

/// The most of an answer that is read, bytes; a few are expected.
const LARGEST: usize = 4096;

/// Makes the call.
pub(super) async fn ask(conn: UpConn, host: &str, service: &str) -> Result<GrpcHealth, String> {
    let broken = |e: h2::Error| format!("upstream sent invalid http2 response: {e}");
    let (sender, connection) = client::handshake(conn).await.map_err(broken)?;
    let call = call(sender, host, service);
    // the connection works while the call waits, and ends with it
    tokio::select! {
        answer = call => answer,
        end = connection => match end {
            Err(e) => Err(broken(e)),
            Ok(()) => Err("upstream prematurely closed connection".into()),
        },
    }
}

async fn call(
    sender: client::SendRequest<Bytes>,
    host: &str,
    service: &str,
) -> Result<GrpcHealth, String> {
    let broken = |e: h2::Error| format!("upstream sent invalid http2 response: {e}");
    let mut sender = sender.ready().await.map_err(broken)?;
    let request = Request::post(format!("http://{host}/grpc.health.v1.Health/Check"))
        .version(Version::HTTP_2)
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .map_err(|e| e.to_string())?;
    let (response, mut body) = sender.send_request(request, false).map_err(broken)?;
    body.send_data(question(service), true).map_err(broken)?;
    let mut response = response.await.map_err(broken)?;
    if response.status() != 200 {
        return Err(format!(
            "upstream sent status {}",
            response.status().as_u16()
        ));
    }
    let mut data = BytesMut::new();
    let stream = response.body_mut();
    while let Some(piece) = poll_fn(|cx| stream.poll_data(cx)).await {
        let piece = piece.map_err(broken)?;
        let _ = stream.flow_control().release_capacity(piece.len());
        if data.len() + piece.len() > LARGEST {
            return Err("upstream sent too large gRPC response".into());
        }
        data.extend_from_slice(&piece);
    }
    let trailers = poll_fn(|cx| stream.poll_trailers(cx))
        .await
        .map_err(broken)?;
    let status = trailers.as_ref().and_then(grpc_status);
    // without a message the status stands in the head
    let status = status.or_else(|| grpc_status(response.headers()));
    let status = status.ok_or("upstream sent no \"grpc-status\"")?;
    Ok(GrpcHealth {
        status,
        serving: is_serving(&data),
    })
}

fn grpc_status(fields: &HeaderMap) -> Option<u32> {
    fields.get("grpc-status")?.to_str().ok()?.parse().ok()
}

/// A `HealthCheckRequest` in a gRPC frame.
fn question(service: &str) -> Bytes {
    let mut message = BytesMut::new();
    // a name of more than 127 bytes would need a longer length; the configuration allows none
    if let (false, Ok(len)) = (service.is_empty(), u8::try_from(service.len())) {
        message.put_u8(0x0a);
        message.put_u8(len);
        message.put_slice(service.as_bytes());
    }
    let mut frame = BytesMut::new();
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.len()).unwrap_or(0));
    frame.put(message);
    frame.freeze()
}

/// Whether a `HealthCheckResponse` in a gRPC frame says SERVING: field 1, a varint, is 1.
fn is_serving(frame: &[u8]) -> bool {
    let Some(([0, l0, l1, l2, l3], message)) = frame.split_first_chunk() else {
        return false;
    };
    let len = u32::from_be_bytes([*l0, *l1, *l2, *l3]) as usize;
    message.len() == len && message.starts_with(&[0x08, 0x01])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages() {
        assert_eq!(&question("")[..], b"\0\0\0\0\0");
        assert_eq!(&question("ab")[..], b"\0\0\0\0\x04\x0a\x02ab");
        assert!(is_serving(b"\0\0\0\0\x02\x08\x01"));
        assert!(!is_serving(b"\0\0\0\0\x02\x08\x02"));
        assert!(!is_serving(b"\0\0\0\0\x03\x08\x01"));
        assert!(!is_serving(b"\0\0"));
    }
}

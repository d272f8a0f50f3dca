//! Absolute redirects (`absolute_redirect`).

use crate::contract::Request;

/// Makes `Location` absolute where it begins with `/` (`absolute_redirect`, `server_name_in_redirect`, `port_in_redirect`).
pub fn absolute(r: &mut Request) {
    if r.out.location.first() != Some(&b'/')
        || r.out.location.starts_with(b"//") && r.out.location.len() == 1
    {
        return;
    }
    let core = r.core();
    if !core.absolute_redirect {
        return;
    }
    let (named, port) = (core.server_name_in_redirect, core.port_in_redirect);
    let tls = r.conn().tls.get().is_some();
    let mut url = Vec::with_capacity(64 + r.out.location.len());
    url.extend_from_slice(if tls { b"https://" } else { b"http://" });
    if named {
        url.extend_from_slice(&r.server().name);
    } else if !r.head.host.is_empty() {
        url.extend_from_slice(&r.head.host);
    } else {
        local_address(r, &mut url);
    }
    if port {
        // the port that came with the host does not matter
        let port = r.conn().local.port();
        let default = if tls { 443 } else { 80 };
        if port != default && port != 0 {
            url.push(b':');
            url.extend_from_slice(itoa::Buffer::new().format(port).as_bytes());
        }
    }
    url.extend_from_slice(&r.out.location);
    r.out.location = url;
    r.out.absolute_location = true;
}

fn local_address(r: &Request, out: &mut Vec<u8>) {
    let text = r.local_address();
    let v6 = r.conn().local.addr.is_some_and(|a| a.is_ipv6());
    if v6 {
        out.push(b'[');
    }
    out.extend_from_slice(text.as_bytes());
    if v6 {
        out.push(b']');
    }
}

//! Paths of files and absolute redirects.

use crate::module::Request;

/// The file that the URI stands for (`root`, `alias`): nginx's `map_uri_to_path`.
pub fn map_path(r: &Request) -> Vec<u8> {
    map_uri(r, &r.uri)
}

/// The same for any URI of the request's location.
pub fn map_uri(r: &Request, uri: &[u8]) -> Vec<u8> {
    let location = r.location();
    let root = &location.core.root;
    let mut path = Vec::with_capacity(128);
    root.path.write(r, &mut path);
    if !path.starts_with(b"/") {
        let prefix = r.site.main.prefix.join(<std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(&path));
        path = std::os::unix::ffi::OsStringExt::into_vec(prefix.into_os_string());
    }
    if root.alias {
        // in a regular expression's location the alias is the whole path
        if !location.regex {
            let rest = uri.get(location.name.len().min(uri.len())..).unwrap_or_default();
            path.extend_from_slice(rest);
        }
        return path;
    }
    while path.ends_with(b"/") {
        path.pop();
    }
    path.extend_from_slice(uri);
    path
}

/// Makes `Location` absolute where it begins with `/` (`absolute_redirect`, `server_name_in_redirect`, `port_in_redirect`).
pub fn absolute(r: &mut Request) {
    if r.out.location.first() != Some(&b'/') || r.out.location.starts_with(b"//") && r.out.location.len() == 1 {
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
        let port = match r.head.host_port {
            0 => r.conn().local.port(),
            p => p,
        };
        let default = if tls { 443 } else { 80 };
        if port != default && port != 0 {
            url.push(b':');
            url.extend_from_slice(itoa::Buffer::new().format(port).as_bytes());
        }
    }
    url.extend_from_slice(&r.out.location);
    r.out.location = url;
}

fn local_address(r: &Request, out: &mut Vec<u8>) {
    let text = r.conn().local.text;
    let v6 = r.conn().local.addr.is_some_and(|a| a.is_ipv6());
    if v6 {
        out.push(b'[');
    }
    out.extend_from_slice(text.as_bytes());
    if v6 {
        out.push(b']');
    }
}

//! Request methods (RFC 9110, section 9; RFC 4918; RFC 5789).

macro_rules! methods {
    ($($id:ident $name:literal),+ $(,)?) => {
        /// The methods that nginx tells apart.
        #[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Method {
            /// Any other method.
            #[default]
            Unknown,
            $(#[doc = $name] $id,)+
        }

        impl Method {
            /// The id of a method; methods are case-sensitive.
            pub fn of(name: &[u8]) -> Method {
                match name {
                    $(name if name == $name.as_bytes() => Method::$id,)+
                    _ => Method::Unknown,
                }
            }

            /// The method's name; empty for [`Method::Unknown`].
            pub fn name(self) -> &'static str {
                match self {
                    Method::Unknown => "",
                    $(Method::$id => $name,)+
                }
            }
        }
    };
}

methods! {
    Get "GET", Head "HEAD", Post "POST", Put "PUT", Delete "DELETE", Mkcol "MKCOL", Copy "COPY", Move "MOVE",
    Options "OPTIONS", Propfind "PROPFIND", Proppatch "PROPPATCH", Lock "LOCK", Unlock "UNLOCK", Patch "PATCH",
    Trace "TRACE", Connect "CONNECT",
}

impl Method {
    /// The method as one bit of a set (`limit_except`, `proxy_cache_methods`).
    pub fn bit(self) -> u32 {
        1 << self as u8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_are_case_sensitive() {
        assert_eq!(Method::of(b"PROPPATCH"), Method::Proppatch);
        assert_eq!(Method::of(b"PATCH").name(), "PATCH");
        assert_eq!(Method::of(b"get"), Method::Unknown);
        assert_eq!(Method::of(b"GETS"), Method::Unknown);
    }
}

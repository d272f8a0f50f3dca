//! A certificate authority that vouches for nobody.
//!
//! Pingora's connectors read the system's authorities when they are made, some megabytes each time, for contexts that
//! we do not use: TLS to origins is made above them. They are given this one instead.

use nix::sys::memfd::{MFdFlags, memfd_create};
use openssl::asn1::Asn1Time;
use openssl::ec::{EcGroup, EcKey};
use openssl::error::ErrorStack;
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::PKey;
use openssl::x509::{X509, X509Name};
use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;

/// A file with the authority's certificate; it lasts as long as this.
pub struct EmptyCa(File);

impl EmptyCa {
    /// Makes the authority; `None` where the system has no such files, or no `/proc` to name them.
    pub fn new() -> Option<EmptyCa> {
        let mut file = File::from(memfd_create("nobody", MFdFlags::MFD_CLOEXEC).ok()?);
        file.write_all(&certificate().ok()?).ok()?;
        let nobody = EmptyCa(file);
        // who is given the name does not take it well if it leads nowhere
        std::fs::metadata(nobody.path()).ok().map(|_| nobody)
    }

    /// The name of the file.
    pub fn path(&self) -> String {
        format!("/proc/self/fd/{}", self.0.as_raw_fd())
    }
}

/// A certificate signed with a key that nobody has.
fn certificate() -> Result<Vec<u8>, ErrorStack> {
    let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1)?;
    let key = PKey::from_ec_key(EcKey::generate(&group)?)?;
    let mut name = X509Name::builder()?;
    name.append_entry_by_text("CN", "nobody")?;
    let name = name.build();
    let mut certificate = X509::builder()?;
    certificate.set_subject_name(&name)?;
    certificate.set_issuer_name(&name)?;
    let (past, now) = (Asn1Time::from_unix(0)?, Asn1Time::days_from_now(0)?);
    certificate.set_not_before(&past)?;
    certificate.set_not_after(&now)?;
    certificate.set_pubkey(&key)?;
    certificate.sign(&key, MessageDigest::sha256())?;
    certificate.build().to_pem()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_a_file_of_one_certificate() {
        let nobody = EmptyCa::new().unwrap();
        let pem = std::fs::read(nobody.path()).unwrap();
        assert_eq!(X509::stack_from_pem(&pem).unwrap().len(), 1);
    }
}

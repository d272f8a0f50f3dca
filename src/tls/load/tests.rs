use super::*;
use openssl::asn1::Asn1Time;
use openssl::hash::MessageDigest;
use openssl::x509::X509Name;

/// A self-signed certificate and its key, as PEM.
fn pair(name: &str) -> (Vec<u8>, Vec<u8>) {
    let group = openssl::ec::EcGroup::from_curve_name(openssl::nid::Nid::X9_62_PRIME256V1).unwrap();
    let key = PKey::from_ec_key(openssl::ec::EcKey::generate(&group).unwrap()).unwrap();
    let mut subject = X509Name::builder().unwrap();
    subject.append_entry_by_text("CN", name).unwrap();
    let subject = subject.build();
    let mut c = X509::builder().unwrap();
    c.set_subject_name(&subject).unwrap();
    c.set_issuer_name(&subject).unwrap();
    c.set_pubkey(&key).unwrap();
    c.set_not_before(&Asn1Time::days_from_now(0).unwrap())
        .unwrap();
    c.set_not_after(&Asn1Time::days_from_now(2).unwrap())
        .unwrap();
    c.sign(&key, MessageDigest::sha256()).unwrap();
    (
        c.build().to_pem().unwrap(),
        key.private_key_to_pem_pkcs8().unwrap(),
    )
}

#[test]
fn names() {
    let base = Path::new("/etc/nginx");
    assert_eq!(
        Name::parse(b"a.crt", base),
        Name::Path("/etc/nginx/a.crt".into())
    );
    assert_eq!(Name::parse(b"/b.crt", base), Name::Path("/b.crt".into()));
    assert_eq!(Name::parse(b"data:x", base).shown(), "data:...");
    let foreign = Name::parse(b"engine:e:k", base);
    assert_eq!(
        key(&foreign, None, true).unwrap_err(),
        "cannot load certificate key \"engine:e:k\": loading \"engine:...\" certificate keys is not supported"
    );
}

#[test]
fn errors_read_as_in_nginx() {
    let missing = chain(&Name::Path("/nonexistent.crt".into())).unwrap_err();
    assert!(missing.starts_with("cannot load certificate \"/nonexistent.crt\": BIO_new_file() failed (SSL: error:80000002:system library::No such file or directory:calling fopen(/nonexistent.crt, r)"), "{missing}");
    let empty = chain(&Name::Data(Vec::new())).unwrap_err();
    assert!(empty.starts_with("cannot load certificate \"data:...\": PEM_read_bio_X509_AUX() failed (SSL: error:0480006C:PEM routines::no start line"), "{empty}");
}

#[test]
fn chains_keys_and_passwords() {
    let (one, key_one) = pair("one");
    let (two, _) = pair("two");
    let all = Name::Data([one.clone(), two].concat());
    assert_eq!(chain(&all).unwrap().len(), 2);
    assert!(
        chain(&Name::Data(
            [one, b"-----BEGIN CERTIFICATE-----\nx\n".to_vec()].concat()
        ))
        .is_err()
    );
    let locked = PKey::private_key_from_pem(&key_one)
        .unwrap()
        .private_key_to_pem_pkcs8_passphrase(openssl::symm::Cipher::aes_128_cbc(), b"second")
        .unwrap();
    let locked = Name::Data(locked);
    assert!(
        key(
            &locked,
            Some(&[b"first".to_vec(), b"second".to_vec()]),
            true
        )
        .is_ok()
    );
    assert!(key(&locked, Some(&[b"first".to_vec()]), true).is_err());
    assert!(key(&locked, Some(&[]), true).is_err());
    assert!(key(&locked, None, true).is_err());
}

#[test]
fn the_cache_follows_files() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c.crt");
    let name = Name::Path(path.clone());
    let cn =
        |c: &Chain| String::from_utf8(crate::tls::ffi::name_oneline(c[0].subject_name())).unwrap();
    let write = |who: &str| {
        // a new file takes the old one's place: another inode
        let new = dir.path().join(who);
        std::fs::write(&new, pair(who).0).unwrap();
        std::fs::rename(new, &path).unwrap();
    };
    write("one");
    let lasting = Cache::new(1, Duration::from_secs(60), Duration::from_secs(60));
    let strict = Cache::new(1, Duration::ZERO, Duration::from_secs(60));
    for c in [&lasting, &strict] {
        assert_eq!(cn(&c.chain(&name, false).unwrap()), "/CN=one");
    }
    write("two");
    assert_eq!(cn(&lasting.chain(&name, false).unwrap()), "/CN=one");
    assert_eq!(cn(&lasting.chain(&name, true).unwrap()), "/CN=two");
    assert_eq!(cn(&strict.chain(&name, false).unwrap()), "/CN=two");
    let other = Name::Data(pair("three").0);
    assert_eq!(cn(&lasting.chain(&other, false).unwrap()), "/CN=three");
    assert_eq!(lasting.entries.lock().len(), 1);
}

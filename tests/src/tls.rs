//! A certificate authority for tests, the identities it vouches for, and both ends of TLS.

use std::io::{Read, Write};
use std::path::PathBuf;
use std::sync::Arc;

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, StreamOwned};

/// A certificate authority that only one test knows.
#[derive(Debug)]
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    folder: tempfile::TempDir,
}

impl Authority {
    /// Makes one, with its certificate in a file for the clients that want that.
    #[must_use]
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "outgate test authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("ca.pem"), issuer.pem()).unwrap();
        Self { issuer, folder }
    }

    /// The authority's certificate as a PEM file.
    #[must_use]
    pub fn pem_file(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// What a server needs to be `name`.
    #[must_use]
    pub fn server(&self, name: &str) -> Arc<ServerConfig> {
        let (certificate, key) = self.vouch(name);
        let config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate.der().clone()],
                PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
            );
        Arc::new(config.unwrap())
    }

    /// The same for servers that read PEM: a certificate for `name`, and its key.
    #[must_use]
    pub fn server_pem(&self, name: &str) -> (String, String) {
        let (certificate, key) = self.vouch(name);
        (certificate.pem(), key.serialize_pem())
    }

    fn vouch(&self, name: &str) -> (Certificate, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new([name.to_owned()]).unwrap();
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        (params.signed_by(&key, &self.issuer).unwrap(), key)
    }

    /// A TLS client's side over `wire`, to a server that must be `name`.
    pub fn client<W: Read + Write>(&self, name: &str, wire: W) -> StreamOwned<ClientConnection, W> {
        StreamOwned::new(self.connection(name), wire)
    }

    /// The very bytes of a real ClientHello for `name`.
    #[must_use]
    pub fn hello(&self, name: &str) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.connection(name).write_tls(&mut bytes).unwrap();
        bytes
    }

    fn connection(&self, name: &str) -> ClientConnection {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::clone(self.issuer.der())).unwrap();
        let config = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        ClientConnection::new(Arc::new(config), ServerName::try_from(name.to_owned()).unwrap()).unwrap()
    }
}

impl Default for Authority {
    fn default() -> Self {
        Self::new()
    }
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

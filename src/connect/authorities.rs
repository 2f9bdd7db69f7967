//! The certificate authorities for TLS.

use std::io;
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::{CertificateDer, pem::PemObject};
use rustls::{ClientConfig, RootCertStore, crypto::ring};

use crate::regular_file;

/// The largest file that is read, in bytes. The usual bundle of public authorities is about 250 KB.
const MAX_FILE: u64 = 16 << 20;

/// Certificate authorities that are trusted in addition to the system's. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Authorities(Option<Arc<RootCertStore>>);

impl Authorities {
    /// Reads the certificates of a PEM file and ignores everything else in it.
    ///
    /// # Errors
    /// What is expected of the file, on one line that quotes nothing of it.
    pub fn read(path: &Path) -> Result<Self, String> {
        let pem = regular_file::read(path, MAX_FILE)
            .map_err(|error| format!("the path of a PEM file that can be read: {error}"))?
            .ok_or_else(|| format!("a PEM file of at most {MAX_FILE} bytes"))?;
        let mut roots = RootCertStore::empty();
        for (certificate, number) in CertificateDer::pem_slice_iter(&pem).zip(1..) {
            let broken = format!("a PEM file of certificates: number {number} in it is not one");
            let added = certificate.ok().and_then(|certificate| roots.add(certificate).ok());
            added.ok_or(broken)?;
        }
        if roots.is_empty() {
            return Err("a PEM file with at least one certificate".to_owned());
        }
        Ok(Self(Some(Arc::new(roots))))
    }

    /// A TLS configuration that trusts these authorities and the system's. If TLS is not `needed`, it
    /// trusts none: reading the system's certificates takes time, and some images have none.
    ///
    /// # Errors
    /// If TLS is needed and there are no certificates at all.
    pub(super) fn tls(&self, needed: bool) -> io::Result<ClientConfig> {
        let mut roots = RootCertStore::empty();
        if needed {
            roots = self.0.as_deref().cloned().unwrap_or(roots);
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            if roots.is_empty() {
                let message = "this machine has no CA certificates, and GEMINI_CA_FILE names none";
                return Err(io::Error::new(io::ErrorKind::NotFound, message));
            }
        }
        Ok(ClientConfig::builder_with_provider(ring::default_provider().into())
            .with_safe_default_protocol_versions()
            .expect("ring supports the default versions of TLS")
            .with_root_certificates(roots)
            .with_no_client_auth())
    }
}

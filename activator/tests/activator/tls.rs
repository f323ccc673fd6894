//! Encryption between the parts of an installation.

use std::{
    io::Write as _,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use parking_lot::Mutex;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::{Cluster, Pod, Setup, WAYS, for_revision, get_on, ok, until};

/// The port that pods encrypt on.
const PORT: u16 = 8112;

struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("a certificate"))
    }

    /// A certificate for these names and its key.
    fn issue(&self, names: &[&str]) -> (String, String) {
        let key = KeyPair::generate().expect("a key");
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let params = CertificateParams::new(names).expect("names");
        (params.signed_by(&key, &self.0).expect("a certificate").pem(), key.serialize_pem())
    }
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// An address of this machine that no other test has.
fn own_address(number: u8) -> IpAddr {
    let process = std::process::id();
    IpAddr::from([127, 1 + number, (process >> 8) as u8, (process as u8).max(1)])
}

/// What encrypts the connections of a pod.
fn acceptor(authority: &Authority, names: &[&str]) -> TlsAcceptor {
    let (certificate, key) = authority.issue(names);
    let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).expect("a certificate")];
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("a key");
    let config = rustls::ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .expect("a certificate");
    TlsAcceptor::from(Arc::new(config))
}

/// A pod at `ip` that encrypts: says `body` to every request, with the host it was asked for.
async fn encrypted(ip: IpAddr, authority: &Authority, names: &[&str], body: &'static str) -> SocketAddr {
    let acceptor = acceptor(authority, names);
    let listener = TcpListener::bind((ip, PORT)).await.expect("a free address");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(mut stream) = acceptor.accept(stream).await else { return };
                let mut seen = Vec::new();
                while let Ok(byte) = stream.read_u8().await {
                    seen.push(byte);
                    if seen.ends_with(b"\r\n\r\n") {
                        seen.clear();
                        stream.write_all(ok(body).as_bytes()).await.expect("sent");
                        stream.flush().await.expect("sent");
                    }
                }
            });
        }
    });
    // Probes are not encrypted.
    Pod::default().listen(TcpListener::bind((ip, 0)).await.expect("a free port"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_are_spoken_to_over_tls_if_they_are_of_the_revisions_namespace() {
    let authority = Authority::new();
    let cluster = Cluster::default();
    let (certificate, key) = authority.issue(&["activator-service.knative-serving.svc.cluster.local"]);
    cluster.certificates(&certificate, &key, &authority.0.pem());
    let setup = Setup::with(cluster, |options| options.encrypt = true).await;

    let right = ["kn-user-default", "data-plane.knative.dev"];
    let cases: [(&str, &Authority, &[&str], &str); 3] = [
        ("right", &authority, &right, "200 OK"),
        ("tenant", &authority, &["kn-user-other", "data-plane.knative.dev"], "502 Bad Gateway"),
        ("forged", &Authority::new(), &right, "502 Bad Gateway"),
    ];
    for (number, (name, authority, names, status)) in cases.into_iter().enumerate() {
        let address = encrypted(own_address(number as u8), authority, names, "over TLS").await;
        setup.revision(name, 0, 300).await;
        setup.cluster.endpoints(name, &[address], &[]);
        for way in WAYS {
            let answer = get_on(way, setup.address(), "/", &for_revision(name)).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{name}: {answer}");
            assert_eq!(answer.ends_with("over TLS"), status == "200 OK", "{name}: {answer}");
        }
    }
}

/// One that answers requests with a body of `LENGTH` bytes, which it keeps, and closes each connection with its answer.
async fn closing(ip: IpAddr, authority: &Authority, names: &[&str]) -> (SocketAddr, Arc<Mutex<Vec<String>>>) {
    let acceptor = acceptor(authority, names);
    let listener = TcpListener::bind((ip, PORT)).await.expect("a free address");
    let bodies = Arc::<Mutex<Vec<String>>>::default();
    let seen = bodies.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, bodies) = (acceptor.clone(), bodies.clone());
            tokio::spawn(async move {
                let Ok(mut stream) = acceptor.accept(stream).await else { return };
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    let Ok(byte) = stream.read_u8().await else { return };
                    head.push(byte);
                }
                let mut body = [0; LENGTH];
                stream.read_exact(&mut body).await.expect("a body");
                bodies.lock().push(String::from_utf8(body.to_vec()).expect("text"));
                // In one piece, so that the end is there when the answer is.
                let session = stream.get_mut().1;
                session.writer().write_all(ok("").as_bytes()).expect("room");
                session.send_close_notify();
                let _ = stream.flush().await;
            });
        }
    });
    (Pod::default().listen(TcpListener::bind((ip, 0)).await.expect("a free port")), seen)
}

const LENGTH: usize = 4;

/// What may not be repeated is never written to a connection whose end has arrived.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_that_close_kept_connections_lose_no_request() {
    const CLIENTS: usize = 4;
    const EACH: usize = 50;
    let authority = Authority::new();
    let cluster = Cluster::default();
    let (certificate, key) = authority.issue(&["activator-service.knative-serving.svc.cluster.local"]);
    cluster.certificates(&certificate, &key, &authority.0.pem());
    let setup = Setup::with(cluster, |options| options.encrypt = true).await;
    let names = ["kn-user-default", "data-plane.knative.dev"];
    let (address, bodies) = closing(own_address(9), &authority, &names).await;
    setup.revision("closing", 0, 300).await;
    setup.cluster.endpoints("closing", &[address], &[]);
    let clients = (0..CLIENTS).map(|client| {
        let address = setup.address();
        tokio::spawn(async move {
            let mut stream = TcpStream::connect(address).await.expect("listening");
            let headers = for_revision("closing");
            for number in 0..EACH {
                let body = client * EACH + number;
                let request =
                    format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {LENGTH}\r\n{headers}\r\n{body:0LENGTH$}");
                stream.write_all(request.as_bytes()).await.expect("sent");
                let answer = tokio::time::timeout(crate::PATIENCE, crate::read_answer(&mut stream)).await;
                let answer = answer.expect("in time");
                assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{body}: {answer}");
            }
        })
    });
    for client in clients.collect::<Vec<_>>() {
        client.await.expect("no panic");
    }
    let mut bodies = std::mem::take(&mut *bodies.lock());
    bodies.sort();
    let all: Vec<_> = (0..CLIENTS * EACH).map(|body| format!("{body:0LENGTH$}")).collect();
    assert_eq!(bodies, all, "each once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_encrypted_port_serves_the_newest_certificate() {
    let authority = Authority::new();
    let cluster = Cluster::default();
    let (certificate, key) = authority.issue(&["old.example.com"]);
    cluster.certificates(&certificate, &key, &authority.0.pem());
    let setup = Setup::with(cluster, |options| options.encrypt = true).await;
    let address = setup.activator.tls_address().expect("it encrypts");
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.0.pem().as_bytes()).expect("a certificate")).expect("valid");
    let config = rustls::ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = TlsConnector::from(Arc::new(config));
    let connect = |name: &'static str| {
        let (name, connector) = (ServerName::try_from(name).expect("a name"), connector.clone());
        async move {
            let stream = TcpStream::connect(address).await.expect("listening");
            connector.connect(name, stream).await
        }
    };
    let mut stream = connect("old.example.com").await.expect("the certificate");
    stream
        .write_all(b"GET / HTTP/1.1\r\nHost: a\r\nK-Network-Probe: activator\r\nConnection: close\r\n\r\n")
        .await
        .expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("activator"), "{answer}");

    let (certificate, key) = authority.issue(&["new.example.com"]);
    setup.cluster.certificates(&certificate, &key, &authority.0.pem());
    let reloaded = async {
        while connect("new.example.com").await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(crate::PATIENCE, reloaded).await.expect("the new certificate in time");
    until("nothing to be left", || setup.activator.in_flight() == 0).await;
}

//! One probe: a request, a connection or a command, with its timeout. The error is what the event says.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{Container, HTTPGetAction, Probe};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::port;
use crate::groups::Group;
use crate::sandbox::{Launch, Sandbox};

/// What a probe may say of an answer.
const MESSAGE_LIMIT: usize = 1024;
const BODY_LIMIT: usize = 10 << 10;

/// The running container that probes and hooks are aimed at.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) ip: Ipv4Addr,
    /// Ports that are others than the pod says, when pods share the host's network.
    pub(crate) moved_port: Option<(u16, u16)>,
    pub(crate) exec: Option<Exec>,
}

/// What is needed to run a command in the container.
#[derive(Debug, Clone)]
pub(crate) struct Exec {
    pub(crate) sandbox: Sandbox,
    pub(crate) mounts: Option<Arc<OwnedFd>>,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) uid: Option<u32>,
    pub(crate) gid: Option<u32>,
    pub(crate) group: Option<Arc<Group>>,
}

// === impl Target ===

impl Target {
    #[cfg(test)]
    pub(crate) fn address(ip: Ipv4Addr) -> Self {
        Self { ip, moved_port: None, exec: None }
    }

    fn socket(&self, host: Option<&str>, number: u16) -> Result<SocketAddr, String> {
        let number = self.moved_port.filter(|(from, _)| *from == number).map_or(number, |(_, to)| to);
        let ip = match host.filter(|host| !host.is_empty()) {
            // A program moved to another port listens on every address of the host.
            None => self.ip,
            Some(host) => host.parse().map_err(|_| format!("host {host:?} is not an IPv4 address"))?,
        };
        Ok(SocketAddr::from((ip, number)))
    }
}

/// Makes one probe.
pub(crate) async fn check(
    probe: &Probe,
    container: &Container,
    target: &Target,
    timeout: Duration,
) -> Result<(), String> {
    let checked = async {
        if let Some(action) = &probe.http_get {
            let headers = [("user-agent", "kube-probe/1.34")];
            let status = http_get(action, container, target, &headers).await?;
            return if (200..400).contains(&status.0) {
                Ok(())
            } else {
                Err(format!("HTTP probe failed with statuscode: {}", status.0))
            };
        }
        if let Some(action) = &probe.tcp_socket {
            let address = target.socket(action.host.as_deref(), port(&action.port, container)?)?;
            return TcpStream::connect(address).await.map(drop).map_err(|error| format!("dial tcp {address}: {error}"));
        }
        if let Some(action) = &probe.exec {
            return match exec(action.command.clone().unwrap_or_default(), target).await? {
                (0, _) => Ok(()),
                (_, output) => Err(output),
            };
        }
        if let Some(action) = &probe.grpc {
            let number = u16::try_from(action.port).map_err(|_| format!("invalid port number: {}", action.port))?;
            let address = target.socket(None, number)?;
            return grpc(address, action.service.as_deref().unwrap_or_default()).await;
        }
        Ok(())
    };
    match tokio::time::timeout(timeout, checked).await {
        Ok(result) => result,
        Err(_) if probe.exec.is_some() => Err(format!("command timed out after {}s", timeout.as_secs())),
        Err(_) => Err("context deadline exceeded (Client.Timeout exceeded while awaiting headers)".to_owned()),
    }
}

/// The status of an answer and the beginning of its body.
pub(crate) async fn http_get(
    action: &HTTPGetAction,
    container: &Container,
    target: &Target,
    extra: &[(&str, &str)],
) -> Result<(u16, String), String> {
    let scheme = action.scheme.as_deref().unwrap_or("http").to_ascii_lowercase();
    let address = target.socket(action.host.as_deref(), port(&action.port, container)?)?;
    let path = action.path.as_deref().filter(|path| !path.is_empty()).unwrap_or("/");
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    let url = format!("{scheme}://{address}{path}");
    let failed = |error: &dyn std::fmt::Display| format!("Get \"{url}\": {error}");
    let mut request = hyper::Request::get(path).header("host", address.to_string());
    for (name, value) in extra {
        request = request.header(*name, *value);
    }
    request = request.header("accept", "*/*").header("connection", "close");
    let mut request = request.body(Empty::<bytes::Bytes>::new()).map_err(|error| failed(&error))?;
    for header in action.http_headers.iter().flatten() {
        let name = http::HeaderName::try_from(&header.name).map_err(|error| failed(&error))?;
        let value = http::HeaderValue::try_from(&header.value).map_err(|error| failed(&error))?;
        request.headers_mut().insert(name, value);
    }
    let stream =
        TcpStream::connect(address).await.map_err(|error| format!("Get \"{url}\": dial tcp {address}: {error}"))?;
    let _ = stream.set_nodelay(true);
    if scheme == "https" {
        let name = ServerName::IpAddress(address.ip().into());
        let connector = TlsConnector::from(controller::probe_tls());
        let stream = connector.connect(name, stream).await.map_err(|error| failed(&error))?;
        return ask(stream, request).await.map_err(|error| failed(&error));
    }
    ask(stream, request).await.map_err(|error| failed(&error))
}

/// One exchange over a connection, which ends with it.
async fn ask<S>(stream: S, request: hyper::Request<Empty<bytes::Bytes>>) -> hyper::Result<(u16, String)>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let answer = async {
        let mut response = sender.send_request(request).await?;
        let mut body = Vec::new();
        while let Some(Ok(frame)) = response.frame().await {
            body.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
            if body.len() > BODY_LIMIT {
                break;
            }
        }
        Ok((response.status().as_u16(), String::from_utf8_lossy(&body).into_owned()))
    };
    // Polling the connection here, not in a task of its own, ends it with the probe.
    let mut answer = std::pin::pin!(answer);
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        biased;
        answer = &mut answer => answer,
        ended = &mut connection => match ended {
            Ok(()) => answer.await,
            Err(error) => Err(error),
        },
    }
}

/// Exit code and output of a command run in the container. Dropping the future kills it.
pub(crate) async fn exec(command: Vec<String>, target: &Target) -> Result<(i32, String), String> {
    let Some(exec) = target.exec.clone() else { return Err("the container has not started".to_owned()) };
    if command.is_empty() {
        return Err("exec: no command".to_owned());
    }
    let launch = Launch {
        argv: command,
        env: exec.env,
        working_dir: "/".into(),
        uid: exec.uid,
        gid: exec.gid,
        group: exec.group,
        ..Launch::default()
    };
    let mounts = exec.mounts;
    let launched = exec.sandbox.run(move |inside| inside.launch_in(mounts.as_deref(), &launch)).await;
    let mut launched = launched.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
    let killer = KillOnDrop(launched.child.pid);
    let (out, err) = (launched.child.stdout.take(), launched.child.stderr.take());
    let (mut output, errors) = tokio::join!(read(out), read(err));
    output.extend_from_slice(&errors);
    let exit = launched.child.wait().await;
    std::mem::forget(killer);
    let mut text = String::from_utf8_lossy(&output).into_owned();
    text.truncate(text.floor_char_boundary(MESSAGE_LIMIT));
    Ok((exit.code(), text))
}

async fn read(pipe: Option<tokio::net::unix::pipe::Receiver>) -> Vec<u8> {
    let mut output = Vec::new();
    if let Some(pipe) = pipe {
        let _ = pipe.take(BODY_LIMIT as u64).read_to_end(&mut output).await;
    }
    output
}

struct KillOnDrop(i32);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        if let Some(pid) = rustix::process::Pid::from_raw(self.0) {
            let _ = rustix::process::kill_process_group(pid, rustix::process::Signal::KILL);
        }
    }
}

/// `grpc.health.v1.Health/Check`: the request and its answer are two fields each, so no generated code is needed.
async fn grpc(address: SocketAddr, service: &str) -> Result<(), String> {
    let failed = |error: &dyn std::fmt::Display| format!("failed to connect service {address}: {error}");
    let stream = TcpStream::connect(address).await.map_err(|error| failed(&error))?;
    let executor = hyper_util::rt::TokioExecutor::new();
    let connected = hyper::client::conn::http2::handshake(executor, TokioIo::new(stream)).await;
    let (mut sender, connection) = connected.map_err(|error| failed(&error))?;
    let mut message = vec![0, 0, 0, 0, 0];
    if !service.is_empty() {
        let length = u8::try_from(service.len()).ok().filter(|length| *length < 128);
        let length = length.ok_or_else(|| "the name of the service is too long".to_owned())?;
        message[4] = length + 2;
        message.extend_from_slice(&[0x0a, length]);
        message.extend_from_slice(service.as_bytes());
    }
    let request = hyper::Request::post(format!("http://{address}/grpc.health.v1.Health/Check"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(http_body_util::Full::new(bytes::Bytes::from(message)))
        .map_err(|error| failed(&error))?;
    let answer = async {
        let response = sender.send_request(request).await.map_err(|error| failed(&error))?;
        let early = response.headers().get("grpc-status").cloned();
        let collected = response.into_body().collect().await.map_err(|error| failed(&error))?;
        let late = collected.trailers().and_then(|trailers| trailers.get("grpc-status").cloned());
        match late.or(early) {
            Some(code) if code != "0" => Err(format!("service {service:?} health check failed with code {code:?}")),
            // Field 1, value 1: SERVING.
            _ if collected.to_bytes().get(5..) == Some(&[0x08, 0x01][..]) => Ok(()),
            _ => Err(format!("service unhealthy (responded with {:?})", "NOT_SERVING")),
        }
    };
    tokio::select! {
        answer = answer => answer,
        ended = connection => Err(ended.err().map_or_else(|| failed(&"connection closed"), |error| failed(&error))),
    }
}

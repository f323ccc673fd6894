//! What a reverse proxy does to a request and to its response.
//!
//! `Outbound::new` turns a request as it was received into one for the next hop; the caller may look at and change
//! its headers and host, then sends it as often as needed (a request that was not sent comes back); `respond` turns
//! the backend's response into the client's, and joins the two connections after an upgrade.

use std::net::{IpAddr, SocketAddr};

use http::{
    HeaderMap, Method, Request, Response, StatusCode, Uri, Version,
    header::{self, HeaderValue},
    uri::{Authority, PathAndQuery, Scheme},
};
use http_body::Body as _;
use hyper::upgrade::OnUpgrade;

use crate::{
    Incoming, Pool, RequestBody, ResponseBody, SendError, Timer, headers, http_error, incoming::Interim,
    kept::KeptBody, pool::PooledBody, tunnel,
};

/// A request on its way to the next hop.
#[derive(Debug)]
pub struct Outbound {
    pub request: Request<RequestBody>,
    /// The client's side of an upgrade it asked for.
    upgrade: Option<(OnUpgrade, HeaderValue)>,
    http2: bool,
    /// Where interim responses over HTTP/2 go.
    interim: Option<Interim>,
}

/// A request to be sent once more, should it turn out that nobody has it. Dropped, what was kept of its body goes.
#[derive(Debug)]
pub struct Spare {
    request: Request<RequestBody>,
}

/// How many connections a request is tried on that was written to none.
const ATTEMPTS: usize = 4;

// === impl Outbound ===

impl Outbound {
    /// Makes the request ready: one-hop headers go, the peer is appended to `X-Forwarded-For`, the host becomes a
    /// `Host` header. Path and query are not touched.
    ///
    /// # Errors
    /// A 502 for requests that a reverse proxy cannot pass on (`CONNECT`).
    pub fn new<G>(mut request: Request<Incoming>, peer: IpAddr) -> Result<Self, Box<Response<ResponseBody<G>>>> {
        if request.method() == Method::CONNECT {
            let response = http_error(StatusCode::BAD_GATEWAY, "client sent unsupported CONNECT request");
            return Err(Box::new(response));
        }
        let http2 = request.version() == Version::HTTP_2;
        let token = if http2 { None } else { headers::upgrade_token(request.headers()).cloned() };
        if let Some(token) = &token
            && token.to_str().is_err()
        {
            let message = format!("client tried to switch to invalid protocol {token:?}");
            return Err(Box::new(http_error(StatusCode::BAD_GATEWAY, &message)));
        }
        let upgrade = token.map(|token| (hyper::upgrade::on(&mut request), token));

        let interim = Interim::of(&request);
        let (mut parts, body) = request.into_parts();
        parts.extensions.clear();
        let headers = &mut parts.headers;
        headers::strip_hop_by_hop(headers);
        headers::append_forwarded_for(headers, peer);
        // An absolute URI and HTTP/2 name the host in the URI, which has precedence.
        if let Some(authority) = parts.uri.authority()
            && let Ok(host) = HeaderValue::from_str(authority.as_str())
        {
            headers.insert(header::HOST, host);
        }
        let body = if body.is_end_stream() { RequestBody::Empty } else { RequestBody::Stream(body) };
        if !body.is_end_stream() && body.size_hint().exact().is_none() {
            // Said explicitly, since a GET would lose a body of unknown length otherwise.
            headers.remove(header::CONTENT_LENGTH);
            if !http2 {
                headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
            }
        }
        if let Some((_, token)) = &upgrade {
            headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
            headers.insert(header::UPGRADE, token.clone());
        }
        parts.version = if http2 { Version::HTTP_2 } else { Version::HTTP_11 };
        if !http2 {
            parts.uri = Uri::from(origin(&parts.uri));
        }
        let mut request = Request::from_parts(parts, body);
        let interim = if http2 { interim } else { interim.and_then(|wire| told_by_hyper(&mut request, wire)) };
        Ok(Self { request, upgrade, http2, interim })
    }

    pub fn headers(&self) -> &HeaderMap {
        self.request.headers()
    }

    pub fn headers_mut(&mut self) -> &mut HeaderMap {
        self.request.headers_mut()
    }

    /// The host the client asked for.
    pub fn host(&self) -> Option<&HeaderValue> {
        self.request.headers().get(header::HOST)
    }

    /// Sends to `pool` with the protocol the client used. The host is the `Host` header's, or the destination's
    /// address if there is none.
    ///
    /// Dropping the future cancels the exchange. On an error that leaves the request unsent, `self` can be sent
    /// again, elsewhere for instance; on any other it is spent.
    ///
    /// # Errors
    /// See [`SendError`]; the request inside is already back in `self`, so the error has no use but its text.
    pub async fn send(&mut self, pool: &Pool) -> Result<Response<PooledBody>, SendFailure> {
        self.set_host(pool.address());
        let request = std::mem::take(&mut self.request);
        // Apart what a request over HTTP/2 does not need: every stream's future is copied when it starts.
        let result = if self.http2 {
            pool.send_http2_for(request, self.interim.as_ref()).await
        } else if self.upgrade.is_some() {
            Box::pin(pool.send_fresh(request)).await
        } else {
            Box::pin(pool.send(request)).await
        };
        result.map_err(|error| {
            let message = error.to_string();
            match error.into_request() {
                Ok(request) => {
                    self.request = request;
                    SendFailure { message, unsent: true, spent: false }
                }
                Err(SendError::Broken(error)) => SendFailure { message: chain(&error), unsent: false, spent: true },
                Err(SendError::Unwritten(error)) => SendFailure { message: chain(&error), unsent: true, spent: true },
                Err(_) => SendFailure { message, unsent: false, spent: true },
            }
        })
    }

    /// The same, keeping a spare for whoever finds out from the response that nobody has the request. A connection
    /// that was closed while it was idle is not the last one that is tried.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub async fn send_spared(&mut self, pool: &Pool) -> Result<(Response<PooledBody>, Option<Spare>), SendFailure> {
        let mut attempt = 1;
        loop {
            let spare = self.spare();
            let failure = match self.send(pool).await {
                Ok(response) => return Ok((response, spare)),
                Err(failure) => failure,
            };
            if !failure.spent {
                // What it would have been needed for has yet to come.
                if let Some(spare) = spare {
                    spare.put_by();
                }
                return Err(failure);
            }
            if !failure.unsent || !spare.is_some_and(|spare| self.restore(spare)) {
                return Err(failure);
            }
            if attempt == ATTEMPTS {
                return Err(SendFailure { spent: false, ..failure });
            }
            attempt += 1;
        }
    }

    /// Keeps what is needed to send the request again after it was sent: a body up to a bound. Nothing if that is not
    /// possible, as with an upgrade of the client's connection.
    pub fn spare(&mut self) -> Option<Spare> {
        if self.upgrade.is_some() {
            return None;
        }
        let body = match std::mem::take(self.request.body_mut()) {
            RequestBody::Stream(body) => RequestBody::Kept(KeptBody::new(body)),
            body => body,
        };
        let again = match &body {
            RequestBody::Empty | RequestBody::Stream(_) => RequestBody::Empty,
            RequestBody::Full(bytes) => RequestBody::Full(bytes.clone()),
            RequestBody::Kept(kept) => RequestBody::Kept(kept.next()),
        };
        *self.request.body_mut() = body;
        let mut request = Request::new(again);
        *request.method_mut() = self.request.method().clone();
        *request.uri_mut() = self.request.uri().clone();
        *request.version_mut() = self.request.version();
        *request.headers_mut() = self.request.headers().clone();
        *request.extensions_mut() = self.request.extensions().clone();
        Some(Spare { request })
    }

    /// Becomes what can be sent again. False if too much of its body has gone.
    pub fn restore(&mut self, mut spare: Spare) -> bool {
        let whole = match spare.request.body() {
            RequestBody::Kept(kept) => kept.begin(),
            _ => true,
        };
        if whole {
            self.request = std::mem::take(&mut spare.request);
        }
        whole
    }

    fn set_host(&mut self, destination: SocketAddr) {
        let headers = self.request.headers_mut();
        if !self.http2 {
            if headers.get(header::HOST).is_none_or(HeaderValue::is_empty) {
                let host = HeaderValue::try_from(destination.to_string()).expect("an address is a header value");
                headers.insert(header::HOST, host);
            }
            return;
        }
        let host = headers.remove(header::HOST);
        let uri = self.request.uri();
        if let (Some(host), Some(known)) = (&host, uri.authority())
            && uri.scheme() == Some(&Scheme::HTTP)
            && host.as_bytes() == known.as_str().as_bytes()
            && uri.path_and_query().is_some()
        {
            return;
        }
        let authority = host
            .and_then(|host| Authority::try_from(host.as_bytes()).ok())
            .unwrap_or_else(|| Authority::try_from(destination.to_string()).expect("an address is an authority"));
        let mut parts = http::uri::Parts::default();
        parts.scheme = Some(Scheme::HTTP);
        parts.authority = Some(authority);
        parts.path_and_query = Some(origin(self.request.uri()));
        *self.request.uri_mut() = Uri::from_parts(parts).expect("scheme, authority and path make a URI");
    }
}

// === impl Spare ===

impl Spare {
    /// It is not needed, though the body still has to be kept.
    fn put_by(mut self) {
        *self.request.body_mut() = RequestBody::Empty;
    }
}

impl Drop for Spare {
    fn drop(&mut self) {
        if let RequestBody::Kept(kept) = self.request.body() {
            kept.forget();
        }
    }
}

/// Arranges for interim responses over HTTP/1.1 to be passed on.
fn told_by_hyper(request: &mut Request<RequestBody>, interim: Interim) -> Option<Interim> {
    hyper::ext::on_informational(request, move |response| interim.send(response.status(), response.headers()));
    None
}

/// Why a backend gave no response.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct SendFailure {
    message: String,
    /// The backend has certainly not seen the request.
    pub unsent: bool,
    /// The request is gone all the same, or some of it.
    pub spent: bool,
}

// === impl SendFailure ===

impl SendFailure {
    pub fn new(message: impl Into<String>, unsent: bool) -> Self {
        Self { message: message.into(), unsent, spent: !unsent }
    }
}

/// The client's response: the backend's, under the limits of `timer`, holding `guard` to its end. After an upgrade
/// the two connections are joined, and the tunnel holds them.
pub fn respond<G>(
    outbound: Outbound,
    mut response: Response<PooledBody>,
    timer: Timer,
    guard: G,
) -> Response<ResponseBody<G>>
where
    G: Send + Unpin + 'static,
{
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        return upgrade(outbound, response, timer, guard);
    }
    headers::strip_hop_by_hop(response.headers_mut());
    // The client's connection speaks its own version, whatever the backend's does.
    *response.version_mut() = if outbound.http2 { Version::HTTP_2 } else { Version::HTTP_11 };
    response.extensions_mut().clear();
    response.map(|body| {
        let mut timer = timer;
        timer.wrote();
        ResponseBody::stream(body, Some(timer), guard)
    })
}

fn upgrade<G>(
    outbound: Outbound,
    mut response: Response<PooledBody>,
    timer: Timer,
    guard: G,
) -> Response<ResponseBody<G>>
where
    G: Send + Unpin + 'static,
{
    let answered = headers::upgrade_token(response.headers()).cloned();
    let answered = answered.unwrap_or(HeaderValue::from_static(""));
    let agreed = |(_, asked): &(OnUpgrade, HeaderValue)| {
        !answered.is_empty() && asked.as_bytes().eq_ignore_ascii_case(answered.as_bytes())
    };
    let asked = outbound.upgrade.as_ref().map_or(HeaderValue::from_static(""), |(_, asked)| asked.clone());
    let Some((client, _)) = outbound.upgrade.filter(agreed) else {
        let message = format!("backend tried to switch protocol {answered:?} when {asked:?} was requested");
        return bad_gateway(&SendFailure::new(message, false));
    };
    let backend = hyper::upgrade::on(&mut response);
    tokio::spawn(tunnel::run(client, backend, *timer.limits(), timer.deadline(), guard));
    headers::strip_hop_by_hop(response.headers_mut());
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, answered);
    response.extensions_mut().clear();
    response.map(|_| ResponseBody::empty())
}

/// The answer when a backend failed.
pub fn bad_gateway<G>(failure: &SendFailure) -> Response<ResponseBody<G>> {
    log_failure(&failure.message);
    http_error(StatusCode::BAD_GATEWAY, &failure.message)
}

/// Logs why a backend gave no response, with what tells whether the system is short of sockets, as upstream does.
pub fn log_failure(message: &str) {
    let sockets = std::fs::read_to_string("/proc/net/sockstat").unwrap_or_else(|error| error.to_string());
    tracing::error!(error = message, "error reverse proxying request; sockstat: {sockets}");
}

/// Path and query of a URI; `/` if it has none.
fn origin(uri: &Uri) -> PathAndQuery {
    uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"))
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

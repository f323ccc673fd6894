//! Who asks: bearer tokens, and the headers with which the administrator speaks for others.
//!
//! The machine has one administrator, and everybody who holds a token may do everything; a role model comes later. Tokens of service accounts
//! are opaque, live in memory, and name their account, so that a program that reads its projected token is known by name.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::{HeaderMap, header};
use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::core::{Call, Core, Identity};
use crate::errors::Status;
use crate::metadata;

const DEFAULT_EXPIRY: i64 = 3600;
const SHORTEST_EXPIRY: i64 = 600;
const LONGEST_EXPIRY: i64 = 1 << 32;
/// A program that asks again and again does not fill the memory: the oldest tokens go first.
const MOST_TOKENS: usize = 10_000;

/// The tokens that were given out.
#[derive(Default)]
pub(crate) struct Tokens {
    given: Mutex<HashMap<String, (Arc<Identity>, Instant)>>,
}

// === impl Tokens ===

impl Tokens {
    fn issue(&self, identity: Identity, lives: Duration) -> String {
        let random: [u8; 32] = {
            let (first, second) = (uuid::Uuid::new_v4(), uuid::Uuid::new_v4());
            let mut bytes = [0; 32];
            bytes[..16].copy_from_slice(first.as_bytes());
            bytes[16..].copy_from_slice(second.as_bytes());
            bytes
        };
        let token = URL_SAFE_NO_PAD.encode(random);
        let now = Instant::now();
        let mut given = self.given.lock();
        given.retain(|_, (_, until)| *until > now);
        if given.len() >= MOST_TOKENS {
            let oldest = given.iter().min_by_key(|(_, (_, until))| *until).map(|(token, _)| token.clone());
            oldest.and_then(|oldest| given.remove(&oldest));
        }
        given.insert(token.clone(), (Arc::new(identity), now + lives));
        token
    }

    fn find(&self, token: &str) -> Option<Arc<Identity>> {
        let given = self.given.lock();
        given.get(token).filter(|(_, until)| *until > Instant::now()).map(|(identity, _)| Arc::clone(identity))
    }

    /// The status of a TokenReview.
    pub(crate) fn review(&self, token: &str) -> Value {
        match self.find(token) {
            Some(identity) => json!({
                "authenticated": true, "user": { "username": identity.user, "groups": identity.groups },
            }),
            None => json!({ "authenticated": false, "error": "the token is unknown or has expired" }),
        }
    }
}

/// The identity behind the headers of a request from the network. `admin` is the token of the administrator; None lets everybody be one.
pub(crate) fn authenticate(core: &Core, headers: &HeaderMap, admin: Option<&str>) -> Result<Arc<Identity>, Status> {
    let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let bearer =
        given.and_then(|value| value.split_once(' ')).filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
    let identity = match (admin, bearer) {
        (None, None) => administrator(),
        (Some(admin), Some((_, token))) if same(admin, token.trim()) => administrator(),
        (_, Some((_, token))) => core.tokens.find(token.trim()).ok_or_else(Status::unauthorized)?,
        (Some(_), None) => return Err(Status::unauthorized()),
    };
    Ok(impersonated(headers).map_or(identity, Arc::new))
}

pub(crate) fn anonymous() -> Arc<Identity> {
    Arc::new(Identity::new("system:anonymous", &["system:unauthenticated"]))
}

fn administrator() -> Arc<Identity> {
    Arc::new(Identity::new("kubernetes-admin", &["system:masters", "system:authenticated"]))
}

fn impersonated(headers: &HeaderMap) -> Option<Identity> {
    let user = headers.get("impersonate-user")?.to_str().ok()?;
    let groups = headers
        .get_all("impersonate-group")
        .iter()
        .filter_map(|value| value.to_str().ok())
        .chain(["system:authenticated"]);
    Some(Identity { user: user.to_owned(), groups: groups.map(str::to_owned).collect() })
}

/// Takes as long for a wrong token as for the right one.
fn same(expected: &str, given: &str) -> bool {
    expected.len() == given.len()
        && expected.bytes().zip(given.bytes()).fold(0, |differs, (a, b)| differs | (a ^ b)) == 0
}

/// Answers `serviceaccounts/NAME/token`.
pub(crate) fn token_request(core: &Core, call: &Call, body: &Value) -> Result<Value, Status> {
    let seconds = body.pointer("/spec/expirationSeconds").and_then(Value::as_i64).unwrap_or(DEFAULT_EXPIRY);
    if !(SHORTEST_EXPIRY..=LONGEST_EXPIRY).contains(&seconds) {
        let detail = "may not specify a duration less than 10 minutes or more than 2^32 seconds";
        let error = crate::FieldError::invalid("spec.expirationSeconds", &seconds.into(), detail);
        return Err(Status::invalid(&call.kind, &call.name, &[error]));
    }
    let user = format!("system:serviceaccount:{}:{}", call.namespace, call.name);
    let group = format!("system:serviceaccounts:{}", call.namespace);
    let identity = Identity::new(user, &["system:serviceaccounts", &group, "system:authenticated"]);
    let token = core.tokens.issue(identity, Duration::from_secs(seconds.unsigned_abs()));
    let mut answer = body.clone();
    answer["kind"] = "TokenRequest".into();
    answer["apiVersion"] = "authentication.k8s.io/v1".into();
    answer["spec"]["expirationSeconds"] = seconds.into();
    let expires = call.now + jiff::SignedDuration::from_secs(seconds);
    answer["status"] = json!({ "token": token, "expirationTimestamp": metadata::timestamp(expires) });
    metadata::fields(&mut answer).insert("creationTimestamp".into(), metadata::timestamp(call.now).into());
    Ok(answer)
}

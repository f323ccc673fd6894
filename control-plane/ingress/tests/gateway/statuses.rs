//! Statuses on their way to the API, while somebody else changes the same Ingress: nothing is lost, and nothing that is not
//! the role's own write is taken for its echo.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context as TaskContext, Poll},
};

use api::networking::v1alpha1::Ingress;
use controller::{Context, Tasks};
use futures::future::BoxFuture;
use hyper::{Method, Request, Response, StatusCode};
use ingress::Options;
use kube::{
    Client, ResourceExt,
    api::{Api, Patch, PatchParams, PostParams},
};
use parking_lot::Mutex;
use serde_json::json;
use tokio::sync::oneshot;
use xds::Kind;

use super::{
    cluster::{CLASS, eventually, ingress, open, says, service, until},
    support::free_ports,
};

/// The API, with somebody who acts when the status of an Ingress is written.
#[derive(Clone)]
struct Meddled {
    inner: apiserver::Service,
    answers: Arc<Mutex<Vec<StatusCode>>>,
    meddling: Arc<Mutex<Option<Act>>>,
}

type Act = (When, BoxFuture<'static, ()>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum When {
    /// The status comes too late.
    Before,
    /// The role does not know yet that its status has been written.
    After,
}

/// The role without gateways: statuses say that these are waited for.
struct Rig {
    server: apiserver::Server,
    api: Api<Ingress>,
    meddled: Meddled,
    role: ingress::Handle,
    tasks: Tasks,
}

impl tower::Service<Request<kube::client::Body>> for Meddled {
    type Response = Response<apiserver::Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut TaskContext<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<kube::client::Body>) -> Self::Future {
        let writes = request.method() == Method::PUT && request.uri().path().ends_with("/ingresses/one/status");
        let mut inner = self.inner.clone();
        if !writes {
            return tower::Service::call(&mut inner, request);
        }
        let (answers, meddling) = (self.answers.clone(), self.meddling.lock().take());
        Box::pin(async move {
            let after = match meddling {
                Some((When::Before, act)) => {
                    act.await;
                    None
                }
                Some((When::After, act)) => Some(act),
                None => None,
            };
            let answer = tower::Service::call(&mut inner, request).await?;
            answers.lock().push(answer.status());
            if let Some(act) = after {
                act.await;
            }
            Ok(answer)
        })
    }
}

// === impl Rig ===

impl Rig {
    /// With one Ingress, whose status has been written.
    async fn start() -> Self {
        let server = open().await;
        let meddled = Meddled { inner: server.service(), answers: Arc::default(), meddling: Arc::default() };
        let tasks = Tasks::new();
        let ctx = Context::new(Client::new(meddled.clone(), "default"), tasks.clone());
        let [xds] = free_ports().await;
        let role = ingress::run(ctx, Options { xds_listen: xds, ..Options::default() }).await.unwrap();
        let api: Api<Ingress> = Api::default_namespaced(server.client());
        let rig = Rig { server, api, meddled, role, tasks };
        service(&rig.server, "default", "app", &[([127, 0, 0, 1], 1).into()]);
        rig.api.create(&PostParams::default(), &ingress("one", "one.example.com", CLASS)).await.unwrap();
        rig.until_observed(1).await;
        rig
    }

    /// Done once, at the next status. The answer comes when it is done.
    fn meddle(&self, when: When, act: impl Future<Output = ()> + Send + 'static) -> oneshot::Receiver<()> {
        let (done, acted) = oneshot::channel();
        let act = async move {
            act.await;
            done.send(()).unwrap();
        };
        *self.meddled.meddling.lock() = Some((when, Box::pin(act)));
        acted
    }

    async fn change_host(&self, host: &str) {
        change_host(&self.api, host).await;
    }

    async fn until_observed(&self, generation: i64) {
        until(&self.api, "one", "observed", |one| {
            says(one, "LoadBalancerReady", "Unknown", "Uninitialized")
                && one.and_then(|one| one.status.as_ref()).is_some_and(|s| s.observed_generation == generation)
        })
        .await;
    }

    async fn until_served(&self, host: &str) {
        let name = format!("external_services/(default/one).Domain[{host}]");
        eventually(host, async || self.role.xds.resource(Kind::VirtualHost, &name).is_some()).await;
    }

    /// All that this Ingress gives reason for is done once a later one is.
    async fn until_idle(&self, fence: &str) {
        let host = format!("{fence}.example.com");
        self.api.create(&PostParams::default(), &ingress(fence, &host, CLASS)).await.unwrap();
        until(&self.api, fence, "observed", |i| says(i, "LoadBalancerReady", "Unknown", "Uninitialized")).await;
    }

    fn answers(&self) -> Vec<u16> {
        self.meddled.answers.lock().iter().map(StatusCode::as_u16).collect()
    }

    async fn stop(self) {
        self.tasks.shutdown().await;
        self.server.shutdown().await.unwrap();
    }
}

async fn change_host(api: &Api<Ingress>, host: &str) {
    let spec = ingress("one", host, CLASS).spec;
    api.patch("one", &PatchParams::default(), &Patch::Merge(json!({"spec": spec}))).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_status_is_written_once_for_a_change() {
    let rig = Rig::start().await;
    rig.until_idle("fence").await;
    assert_eq!(rig.answers(), [200], "a new Ingress");
    rig.change_host("two.example.com").await;
    rig.until_observed(2).await;
    rig.until_served("two.example.com").await;
    rig.until_idle("another-fence").await;
    assert_eq!(rig.answers(), [200, 200]);
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_that_overtakes_a_status_is_neither_lost_nor_missed() {
    let rig = Rig::start().await;
    let api = rig.api.clone();
    let acted = rig.meddle(When::Before, async move { change_host(&api, "three.example.com").await });
    rig.change_host("two.example.com").await;
    acted.await.unwrap();
    rig.until_observed(3).await;
    rig.until_served("three.example.com").await;
    let one = rig.api.get("one").await.unwrap();
    assert_eq!(one.spec.rules[0].hosts, ["three.example.com"], "the status was written over what somebody else wrote");
    assert_eq!(rig.answers()[..2], [200, 409]);
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_right_after_a_status_is_not_taken_for_its_echo() {
    let rig = Rig::start().await;
    // The status is the same in all that follows, as far as the watch shows it.
    let api = rig.api.clone();
    let acted = rig.meddle(When::After, async move { change_host(&api, "three.example.com").await });
    rig.change_host("two.example.com").await;
    acted.await.unwrap();
    rig.until_observed(3).await;
    rig.until_served("three.example.com").await;

    let api = rig.api.clone();
    let acted = rig.meddle(When::After, async move {
        let nobody = Patch::Merge(json!({"metadata": {"finalizers": null}}));
        api.patch("one", &PatchParams::default(), &nobody).await.unwrap();
    });
    rig.change_host("four.example.com").await;
    acted.await.unwrap();
    let finalizer = "ingresses.networking.internal.knative.dev";
    until(&rig.api, "one", "given its finalizer back", |one| {
        one.is_some_and(|one| one.finalizers().iter().any(|known| known == finalizer))
    })
    .await;

    // A status of somebody else, and then the own one once more.
    let api = rig.api.clone();
    let acted = rig.meddle(When::After, async move {
        let mut one = api.get("one").await.unwrap();
        one.status.as_mut().unwrap().conditions.retain(|condition| condition.kind != "LoadBalancerReady");
        api.replace_status("one", &PostParams::default(), &one).await.unwrap();
    });
    rig.change_host("five.example.com").await;
    acted.await.unwrap();
    rig.until_observed(5).await;
    rig.stop().await;
}

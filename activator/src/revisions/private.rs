//! The objects that pods are learned from: what lists the pods behind private Services.
//!
//! EndpointSlices are used if they are wanted and may be listed and watched. Upstream's activator follows Endpoints, and
//! its installation grants only these; they come whole with every change. Should slices be refused later, Endpoints are
//! followed from then on: once these are known, what slices said is forgotten, and in between it holds.

use std::sync::{Arc, OnceLock};

use api::keys::{networking, serving};
use controller::{Cache, Context, ObjectKey, Tasks, cache::pauses};
use http::{Request, StatusCode};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::{
    Api, Client,
    api::{ListParams, WatchParams},
    client::Body,
};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::{Revision, Revisions, watches::services};
use crate::backends::{Listing, Slice, Whole};

/// Clones are the same.
#[derive(Clone)]
pub(super) struct Private {
    shared: Arc<Shared>,
}

struct Shared {
    slices: Option<Slices>,
    /// Followed from the start, or since slices were refused.
    whole: OnceLock<Cache<Listing<Whole>>>,
}

struct Slices {
    cache: Cache<Listing<Slice>>,
    /// What keeps the cache up to date.
    tasks: Tasks,
    /// Told when the API says that slices may not be read.
    refused: Arc<Notify>,
    /// Cancelled once Endpoints have taken their place.
    replaced: CancellationToken,
}

// === impl Private ===

impl Private {
    /// `slices`, if these are wanted and allowed, which is asked first.
    pub(super) async fn start(ctx: &Context, slices: bool) -> Self {
        let slices = slices
            && tokio::select! {
                slices = may_follow_slices(&ctx.client) => slices,
                () = ctx.tasks.token().cancelled() => false,
            };
        let slices = slices.then(|| Slices::start(ctx));
        let whole = OnceLock::new();
        if slices.is_none() {
            let _ = whole.set(services(ctx, networking::SERVICE_TYPE_PRIVATE));
        }
        Self { shared: Arc::new(Shared { slices, whole }) }
    }

    pub(super) async fn synced(&self) {
        if let Some(slices) = &self.shared.slices {
            tokio::select! {
                () = slices.cache.synced() => {}
                () = slices.replaced.cancelled() => {}
            }
        } else if let Some(cache) = self.shared.whole.get() {
            cache.synced().await;
        }
    }

    /// Takes over what is known of a revision's pods.
    pub(super) fn refresh_all(&self, revision: &Revision) {
        if let Some(slices) = &self.shared.slices {
            revision.refresh_all(&slices.cache);
        }
        if let Some(cache) = self.shared.whole.get() {
            revision.refresh_all(cache);
        }
    }

    /// Tells revisions of their pods from now on.
    pub(super) fn follow(&self, ctx: &Context, table: &Arc<Revisions>) {
        if let Some(cache) = self.shared.whole.get() {
            table.follow(cache);
        }
        if let Some(slices) = &self.shared.slices {
            table.follow(&slices.cache);
            let (private, context, table) = (self.clone(), ctx.clone(), table.clone());
            ctx.tasks.spawn("slices refused", async move { private.replace_slices(&context, &table).await });
        }
    }

    /// Waits until slices are refused, and follows Endpoints instead.
    async fn replace_slices(&self, ctx: &Context, table: &Arc<Revisions>) {
        let Some(slices) = &self.shared.slices else { return };
        slices.refused.notified().await;
        tracing::warn!(
            "EndpointSlices may not be listed or watched any more, so pods are learned from Endpoints until this program \
             starts anew; to get only what changes, grant list and watch of endpointslices in discovery.k8s.io"
        );
        // A revision that comes now looks here as well; of those that are there already the cache will tell.
        let whole = self.shared.whole.get_or_init(|| services(ctx, networking::SERVICE_TYPE_PRIVATE));
        table.follow(whole);
        whole.synced().await;
        slices.tasks.shutdown().await;
        for listing in slices.cache.list() {
            slices.cache.remove(&ObjectKey::of(&*listing));
        }
        slices.replaced.cancel();
    }
}

// === impl Slices ===

impl Slices {
    fn start(ctx: &Context) -> Self {
        let refused = Arc::new(Notify::new());
        let mut ctx = ctx.child();
        ctx.client = noticing(&ctx.client, &refused);
        let cache = services(&ctx, networking::SERVICE_TYPE_PRIVATE);
        Self { cache, tasks: ctx.tasks, refused, replaced: CancellationToken::new() }
    }
}

/// A client that tells when it is refused something.
fn noticing(client: &Client, refused: &Arc<Notify>) -> Client {
    let (inner, refused) = (client.clone(), refused.clone());
    let service = tower::service_fn(move |request: Request<Body>| {
        let (inner, refused) = (inner.clone(), refused.clone());
        async move {
            let answer = inner.send(request).await?;
            if answer.status() == StatusCode::FORBIDDEN {
                refused.notify_one();
            }
            Ok::<_, kube::Error>(answer)
        }
    });
    Client::new(service, client.default_namespace()).with_valid_until(*client.valid_until())
}

/// Whether EndpointSlices may be listed and watched.
async fn may_follow_slices(client: &Client) -> bool {
    let slices = Api::<EndpointSlice>::all(client.clone());
    let labels = format!("{},{}", networking::SERVICE_TYPE, serving::REVISION);
    let one = ListParams::default().labels(&labels).limit(1);
    let moment = WatchParams::default().labels(&labels).timeout(1);
    let ask = async || {
        let version = slices.list_metadata(&one).await?.metadata.resource_version.unwrap_or_default();
        // It begins, or is refused; what it would say is not waited for.
        slices.watch_metadata(&moment, &version).await.map(drop)
    };
    let mut pauses = pauses();
    loop {
        let error = match ask().await {
            Ok(()) => return true,
            Err(kube::Error::Api(status)) if matches!(status.code, 401 | 403 | 404) => {
                tracing::info!(
                    status = status.code,
                    "EndpointSlices may not be listed and watched, so pods are learned from Endpoints, which arrive whole \
                     with every change; to get only what changes, grant list and watch of endpointslices in \
                     discovery.k8s.io"
                );
                return false;
            }
            Err(error) => error,
        };
        tracing::warn!(%error, "cannot ask whether EndpointSlices may be read; it is tried again after a pause");
        tokio::time::sleep(pauses.next().unwrap_or_default()).await;
    }
}

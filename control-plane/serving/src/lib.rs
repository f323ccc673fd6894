//! The Serving controllers as a library: what upstream's `controller` process does.
//!
//! ```text
//! Service -> Configuration -> Revision -> Deployment, PodAutoscaler, Image
//!         -> Route -> placeholder Services, Ingress      PodAutoscaler -> ServerlessService (autoscaler crate)
//! DomainMapping -> ClusterDomainClaim, Ingress
//! ServerlessService -> public and private Services, Endpoints
//! ```
//!
//! One folder per controller: the file is the reconciler (reads caches, writes objects, fills conditions), the folder
//! beside it holds its pure parts. [`Shared`] has the caches and ConfigMaps that several of them read.

use futures::future::BoxFuture;
use std::sync::Arc;

use controller::{Context, Error};

pub mod configuration;
pub mod domainmapping;
pub mod gc;
pub mod labeler;
pub mod revision;
pub mod route;
pub mod serverlessservice;
pub mod service;
pub mod shared;

pub use shared::Shared;

/// What the controllers can be told.
#[derive(Debug, Clone)]
pub struct Options {
    /// Concurrent reconciles per controller (`K_THREADS_PER_CONTROLLER` upstream, 2 there).
    pub workers: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { workers: 4 }
    }
}

/// Starts all controllers on the context's task group; returns when every cache that they share has its first list.
///
/// # Errors
/// If a ConfigMap that the controllers need is missing or does not parse.
///
/// Boxed, so that the code behind it is compiled with this crate and not again in every program that starts it.
pub fn run(ctx: Context, options: Options) -> BoxFuture<'static, Result<(), Error>> {
    Box::pin(start_all(ctx, options))
}

async fn start_all(ctx: Context, options: Options) -> Result<(), Error> {
    let shared = Arc::new(Shared::start(&ctx).await?);
    service::start(&shared, options.workers);
    configuration::start(&shared, options.workers);
    revision::start(&shared, options.workers).await;
    route::start(&shared, options.workers);
    serverlessservice::start(&shared, options.workers);
    labeler::start(&shared, options.workers);
    gc::start(&shared, options.workers);
    domainmapping::start(&shared, options.workers);
    Ok(())
}

//! The watches that keep the table up to date.

use std::{net::IpAddr, sync::Arc};

use api::{
    keys::{networking, serving},
    serving::v1,
};
use controller::{Cache, Change, Context, ObjectKey};
use kube::ResourceExt;

use super::{Revision, Revisions, private::Private};
use crate::backends::{Listing, Peers, Source, Texts, Whole};

const BY_REVISION: &str = "revision";

/// What is watched.
#[derive(Clone)]
pub(crate) struct Watches {
    revisions: Cache<v1::Revision>,
    private: Private,
    public: Cache<Listing<Whole>>,
}

// === impl Watches ===

impl Watches {
    pub(crate) async fn synced(&self) {
        self.revisions.synced().await;
        self.private.synced().await;
        self.public.synced().await;
    }
}

/// The objects that list what is behind Services of this type.
pub(super) fn services<S: Source>(ctx: &Context, kind: &str) -> Cache<Listing<S>> {
    let texts = Texts::default();
    let mut ctx = ctx.clone();
    if S::IS_WHOLE {
        ctx.client = texts.client(&ctx.client);
    }
    // The controller that writes slices copies the labels of their Services.
    Cache::builder()
        .label_selector(&format!("{}={kind},{}", networking::SERVICE_TYPE, serving::REVISION))
        .index(BY_REVISION, |listing| revision_of(listing).map(|key| key.to_string()).into_iter().collect())
        .transform(move |listing: &mut Listing<S>| {
            listing.complete(&texts);
            let metadata = &mut listing.metadata;
            (metadata.annotations, metadata.owner_references) = (None, None);
            metadata.labels.get_or_insert_default().retain(|name, _| name == serving::REVISION);
        })
        .start(&ctx)
}

/// The revision that an object belongs to.
fn revision_of<S: Source>(listing: &Listing<S>) -> Option<ObjectKey> {
    let name = listing.labels().get(serving::REVISION)?;
    Some(ObjectKey::new(listing.namespace()?, name))
}

// === impl Revisions ===

impl Revisions {
    /// Starts to watch: `slices`, if these are wanted and allowed. Completes when that is known.
    pub(crate) async fn watch(self: &Arc<Self>, ctx: &Context, slices: bool) -> Watches {
        let private = Private::start(ctx, slices).await;
        let public = services(ctx, networking::SERVICE_TYPE_PUBLIC);
        let revisions = Cache::<v1::Revision>::builder()
            .transform(|revision| {
                revision.status = None;
                revision.metadata.annotations = None;
            })
            .start(ctx);

        let (table, caches) = (self.clone(), (private.clone(), public.clone()));
        revisions.on_event(move |change| match change {
            Change::Applied { new, .. } => {
                if let Some(revision) = table.apply(new) {
                    caches.0.refresh_all(&revision);
                    revision.place(&caches.1, table.manner.own);
                    table.created.notify_waiters();
                }
            }
            Change::Deleted(revision) => table.delete(revision),
        });
        private.follow(ctx, self);
        let (table, cache) = (self.clone(), public.clone());
        public.on_event(move |change| {
            if let Some(revision) = table.of(change.object()) {
                revision.place(&cache, table.manner.own);
            }
        });
        Watches { revisions, private, public }
    }

    /// Tells revisions of their pods.
    pub(super) fn follow<S: Source>(self: &Arc<Self>, cache: &Cache<Listing<S>>) {
        let (table, shown) = (self.clone(), cache.clone());
        cache.on_event(move |change| {
            let key = ObjectKey::of(&**change.object());
            if let Change::Applied { old: Some(old), new } = change
                && old.labels() != new.labels()
                && let Some(revision) = table.of(old)
            {
                revision.refresh(&shown, &key);
            }
            if let Some(revision) = table.of(change.object()) {
                revision.refresh(&shown, &key);
            }
        });
    }

    fn of<S: Source>(&self, listing: &Listing<S>) -> Option<Arc<Revision>> {
        let key = revision_of(listing)?;
        self.table.get(&key.namespace, &key.name)
    }
}

// === impl Revision ===

impl Revision {
    pub(super) fn refresh_all<S: Source>(&self, cache: &Cache<Listing<S>>) {
        for listing in cache.by_index(BY_REVISION, &self.key.to_string()) {
            self.refresh(cache, &ObjectKey::of(&*listing));
        }
    }

    /// Takes over what one object lists, as the cache shows it now.
    fn refresh<S: Source>(&self, cache: &Cache<Listing<S>>, key: &ObjectKey) {
        let _one_at_a_time = self.refreshing.lock();
        let listing = cache.get_key(key).filter(|listing| revision_of(listing).as_ref() == Some(&self.key));
        self.backends.update(&key.name, &listing.map(|listing| listing.groups.clone()).unwrap_or_default());
    }

    fn place(&self, public: &Cache<Listing<Whole>>, own: Option<IpAddr>) {
        let _one_at_a_time = self.refreshing.lock();
        let Some(own) = own.filter(|_| self.backends.are_divided()) else { return };
        let listed = public.by_index(BY_REVISION, &self.key.to_string());
        if let Some(peers) = listed.iter().find_map(|listing| Peers::find(&listing.groups, own, self.protocol)) {
            self.backends.set_peers(peers);
        }
    }
}

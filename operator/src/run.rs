//! `operator run`: from nothing to a leader that reconciles, and back.

use std::collections::HashSet;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kube::Resource;
use kube::runtime::reflector::Store;
use tokio_util::sync::CancellationToken;

use crate::cache::Caches;
use crate::context::{Context, Parts};
use crate::lease::{self, Candidate, Elector, Term};
use crate::metrics::Metrics;
use crate::serve::{self, Shown};
use crate::{api, controllers, keys, plan_only, settings};

/// Time for what is being done when the process is asked to stop. Giving back the lease comes after it: the
/// chart's `terminationGracePeriodSeconds` has room for both.
const STOP_WITHIN: Duration = Duration::from_secs(20);
/// How often connections and reports of pods that are gone are forgotten.
const SWEEP: Duration = Duration::from_mins(1);

/// What the command line says.
#[derive(Debug, Clone)]
pub struct Options {
    /// The settings file.
    pub settings: PathBuf,
    /// Kubeconfig files, as the variable KUBECONFIG lists them.
    pub kubeconfig: Option<OsString>,
    /// The operator's own namespace: its Lease and its key.
    pub namespace: String,
    /// Name of this process in the Lease and in events.
    pub identity: String,
    /// Address of metrics and probes.
    pub listen: SocketAddr,
    /// Print plans and do nothing.
    pub plan_only: bool,
}

/// Runs until a signal, or until leadership is lost.
///
/// # Errors
/// Where settings, cluster, key or address can't be had.
pub async fn run(options: Options) -> anyhow::Result<()> {
    let settings = settings::load(&options.settings)?;
    let clients = api::connect(options.kubeconfig.as_deref()).await?;
    let metrics = Metrics::new()?;
    if options.plan_only {
        plan_only::check_definitions(&clients.client).await?;
    }
    let (caches, touches, receivers) = Caches::start(&clients.client);
    let parts = Parts {
        clients,
        caches,
        touches,
        settings,
        metrics,
        identity: options.identity,
    };
    if options.plan_only {
        plan_only::fill(&parts.caches, plan_only::FILL_WITHIN).await?;
        let keys = keys::load_or_pretend(parts.clients.client.clone(), &options.namespace).await?;
        let context = parts.context(keys, Term::forever());
        plan_only::plan_all(&context, plan_only::print).await?;
        return Ok(());
    }

    let ready = Arc::new(AtomicBool::new(false));
    let term = Term::new();
    let shown = Shown {
        term: Arc::clone(&term),
        metrics: parts.metrics.clone(),
        caches: parts.caches.clone(),
        touches: parts.touches.clone(),
        ready: Arc::clone(&ready),
    };
    serve::serve(options.listen, shown).await?;
    let stop = CancellationToken::new();
    tokio::spawn(cancel_on_signal(stop.clone()));
    tokio::select! {
        () = parts.caches.ready() => ready.store(true, Ordering::Release),
        () = stop.cancelled() => return Ok(()),
    }

    // A follower has its caches warm and writes nothing.
    let candidate = Candidate {
        namespace: options.namespace.clone(),
        identity: parts.identity.clone(),
        times: parts.settings.leader_election.into(),
    };
    let mut elector = Elector::new(
        parts.clients.client.clone(),
        candidate,
        Arc::clone(&term),
        parts.metrics.clone(),
    );
    tracing::info!(identity = parts.identity, "waits to lead");
    if !elector.acquire(&stop).await {
        return Ok(());
    }
    tracing::info!(epoch = term.epoch(), "leads");
    let stopping = Arc::new(AtomicBool::new(false));
    lease::exit_at_the_end_of(Arc::clone(&term), Arc::clone(&stopping));
    let give_back = CancellationToken::new();
    let keeping = tokio::spawn({
        let give_back = give_back.clone();
        async move { elector.keep(&give_back).await }
    });

    let work = async {
        let client = parts.clients.client.clone();
        let keys = tokio::select! {
            biased;
            () = stop.cancelled() => return anyhow::Ok(()),
            keys = keys::load_or_create(client, &options.namespace, &term, &parts.metrics) => keys?,
        };
        let context = Arc::new(parts.context(keys, Arc::clone(&term)));
        tokio::spawn(sweep(Arc::clone(&context)));
        let mut working = tokio::spawn(controllers::run_all(context, receivers, stop.clone()));
        tokio::select! {
            // First: controllers that were asked to end did not end by themselves.
            biased;
            () = stop.cancelled() => {}
            ended = &mut working => anyhow::bail!("the controllers ended: {ended:?}"),
        }
        tracing::info!("stops: what is being done is finished first");
        if tokio::time::timeout(STOP_WITHIN, working).await.is_err() {
            tracing::warn!("gave up on what was being done");
        }
        Ok(())
    };
    let outcome = work.await;
    // However the work ended, the next leader need not wait until the lease expires.
    stopping.store(true, Ordering::Release);
    give_back.cancel();
    keeping.await?;
    outcome
}

async fn sweep(context: Arc<Context>) {
    loop {
        tokio::time::sleep(SWEEP).await;
        let caches = &context.caches;
        let pods: HashSet<String> = uids(&caches.pods).collect();
        context.calls.keep_only(|uid| pods.contains(uid));
        context.progress.keep_only(|uid| pods.contains(uid));
        let children: HashSet<String> = uids(&caches.config_maps)
            .chain(uids(&caches.claims))
            .chain(uids(&caches.services))
            .chain(uids(&caches.deployments))
            .collect();
        context.writer.keep_only(|uid| children.contains(uid));
        let waited_for: HashSet<String> = uids(&caches.adapters)
            .chain(uids(&caches.jobs))
            .chain(pods)
            .collect();
        context.spells.keep_only(|uid| waited_for.contains(uid));
    }
}

fn uids<K>(store: &Store<K>) -> impl Iterator<Item = String>
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    let objects = store.state().into_iter();
    objects.filter_map(|object| object.meta().uid.clone())
}

async fn cancel_on_signal(stop: CancellationToken) {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut terminate), Ok(mut interrupt)) = (
        signal(SignalKind::terminate()),
        signal(SignalKind::interrupt()),
    ) else {
        tracing::error!("signals can't be listened to");
        return;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    stop.cancel();
}

//! Start, drain, end.

use std::net::SocketAddr;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail, ensure};
use graftwork_artifacts::Store;
use graftwork_contract::endpoint::{BaseFormat, EngineConfig};
use graftwork_contract::key_values::KeyValueBlock;
use graftwork_contract::pod;
use graftwork_contract::signing::{Addressee, Guard};
use graftwork_listen::{Listener, clock};
use graftwork_model::base::base_digest;
use graftwork_model::config::LlamaConfig;
use graftwork_model::kv::{KV_BLOCK_TOKENS, KvFormat};
use graftwork_model::quant::Quantization;
use graftwork_model::tokenizer::TextTokenizer;
use graftwork_model::transformer::{Accelerator, Held, Llama};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::constraint::Grammars;
use crate::device::{self, Device, DeviceSettings};
use crate::health::{self, Health, Readiness};
use crate::http::{self, Beside, Engine};
use crate::metrics::Metrics;
use crate::options::Options;
use crate::passes::Passes;
use crate::registry::disk_cache::DiskCache;
use crate::registry::files::AdapterFiles;
use crate::registry::state::Budget;
use crate::registry::{self, AdapterRegistry};
use crate::revision::{build, kv_format, revision};
use crate::vllm::VllmMetrics;
use crate::{grpc, mounted};

/// Folder of the store's mount with copies of adapters, where the store is in a bucket.
const COPIES: &str = "adapters";
/// Time for streams to write their error event after the drain's limit.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Runs the engine until SIGTERM or SIGINT.
///
/// # Errors
/// A configuration, base model or address that can't be used; a dead compute thread.
pub fn run(options: Options) -> anyhow::Result<()> {
    tracing_subscriber::fmt()
        .json()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env()
                .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info")),
        )
        .init();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let result = runtime.block_on(async {
        let mut terminate =
            tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        let signal = async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = tokio::signal::ctrl_c() => {}
            }
        };
        tokio::pin!(signal);
        let running = tokio::select! {
            running = Running::start(options) => running?,
            // Nothing runs yet: there is nothing to drain.
            () = &mut signal => return Ok(()),
        };
        running.until(signal).await
    });
    // A file read that hangs must not hold up the end.
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

/// A started engine.
#[derive(Debug)]
pub struct Running {
    /// Where the OpenAI API listens.
    pub http_address: SocketAddr,
    /// Where gRPC listens.
    pub grpc_address: SocketAddr,
    /// Where probes and metrics are.
    pub metrics_address: SocketAddr,
    /// Readiness.
    pub health: Health,
    options: Options,
    abort: CancellationToken,
    stop_http: CancellationToken,
    stop_rest: CancellationToken,
    http: JoinHandle<std::io::Result<()>>,
    grpc: JoinHandle<Result<(), tonic::transport::Error>>,
    metrics: JoinHandle<std::io::Result<()>>,
    device_end: device::End,
    passes: Passes,
}

impl Running {
    /// Loads the base model and opens the ports; adapters follow in the background.
    ///
    /// # Errors
    /// A configuration, base model or address that can't be used.
    pub async fn start(options: Options) -> anyhow::Result<Self> {
        let config = mounted::load(&options.config)?;
        let vllm = (options.vllm_metrics || config.vllm_metrics).then(|| {
            let model = config.base_name.as_deref().unwrap_or(&config.endpoint);
            VllmMetrics::new(model, config.maximum_loaded_adapters)
        });
        let metrics = Metrics::new(vllm)?;
        let health = Health::default();
        let [abort, stop_http, stop_rest] = [(); 3].map(|()| CancellationToken::new());

        // The probes answer while the base model is loaded.
        let (metrics_address, metrics_listener) = bind(options.listen_metrics).await?;
        let probes = health::router(health.clone(), Arc::clone(&metrics));
        let metrics_task = serve_http(metrics_listener, probes, stop_rest.clone());

        let guard = Guard::new(
            Addressee {
                pod_uid: options.pod_uid.clone(),
                owner_uid: config.owner_uid.clone(),
            },
            &config.operator_keys,
        )?;
        let base = load_base(&config).await?;
        let (device, device_end) = start_device(&options, &config, &base, &metrics)?;
        let passes = device.passes();
        health.set(Readiness::ReadingAdapters);

        let registry = AdapterRegistry::start(registry::Settings {
            guard,
            boot_id: format!("{:032x}", rand::random::<u128>()),
            base_digest: config.base_digest.to_string(),
            budget: Budget {
                adapters: config.maximum_loaded_adapters as usize,
                bytes: adapter_memory(&options, &config),
            },
            files: open_files(&options, &config, &base.config)?
                .with_first_factors(base.llama.first_factors())
                .with_cache(open_cache(&options, &config)?),
            metrics: Arc::clone(&metrics),
        });
        let permits = permit_count(&options, &config);
        let engine = Arc::new(Engine {
            registry: registry.clone(),
            device,
            tokenizer: base.tokenizer,
            grammars: base.grammars,
            vocabulary: base.config.vocab_size,
            context_tokens: base.context_tokens,
            base_name: config.base_name.clone(),
            bodies: http::room(),
            beside: Beside::of_cores(std::thread::available_parallelism().map_or(1, NonZero::get)),
            permits: Arc::new(Semaphore::new(permits)),
            permit_count: permits,
            metrics,
            health: health.clone(),
            abort: abort.clone(),
            started: clock::unix_seconds(),
            revision: revision(&options, &config, &base.build, base.llama.accelerator()),
        });
        let (http_address, http_listener) = bind(options.listen_http).await?;
        let readiness = health.clone();
        let is_ready = move || readiness.get() == Readiness::Ready;
        let routes = graftwork_open_inference::serve(http::router(engine), is_ready)?;
        let http_task = serve_http(http_listener, routes, stop_http.clone());
        let (grpc_address, grpc_listener) = bind(options.listen_grpc).await?;
        let grpc_task = tokio::spawn(grpc::serve(
            grpc_listener,
            registry.clone(),
            health.clone(),
            stop_rest.clone(),
        ));
        tokio::spawn(read_mounted(
            options.clone(),
            config,
            registry,
            health.clone(),
        ));
        tracing::info!(%http_address, %grpc_address, %metrics_address, "listening");
        Ok(Self {
            http_address,
            grpc_address,
            metrics_address,
            health,
            options,
            abort,
            stop_http,
            stop_rest,
            http: http_task,
            grpc: grpc_task,
            metrics: metrics_task,
            device_end,
            passes,
        })
    }

    /// Serves until `signal`, then drains: not ready at once, new requests taken until endpoints have
    /// caught up, what runs finished or, at the limit, ended with an error.
    ///
    /// # Errors
    /// Where the compute thread or a server dies before.
    pub async fn until(mut self, signal: impl Future<Output = ()>) -> anyhow::Result<()> {
        tokio::select! {
            () = signal => {}
            _ = &mut self.device_end => return self.dead("the compute thread has died").await,
            () = self.passes.stuck() => return self.dead("a forward pass does not end").await,
            ended = &mut self.http => bail!("the HTTP server ended: {ended:?}"),
            ended = &mut self.grpc => bail!("the gRPC server ended: {ended:?}"),
            ended = &mut self.metrics => bail!("the metrics server ended: {ended:?}"),
        }
        let limit =
            Instant::from_std(clock::now()) + Duration::from_secs(self.options.drain_limit_seconds);
        self.health.set(Readiness::Draining);
        tracing::info!("stopping: not ready, still accepting");
        tokio::select! {
            () = sleep(Duration::from_secs(self.options.drain_delay_seconds)) => {}
            _ = &mut self.device_end => return self.dead("the compute thread has died").await,
        }
        tracing::info!("stopping: accepting no more");
        self.stop_http.cancel();
        if timeout_at(limit, &mut self.http).await.is_err() {
            tracing::warn!("stopping: the limit is reached, running requests end with an error");
            self.abort.cancel();
            let last_words = Instant::from_std(clock::now()) + LAST_WORDS;
            if timeout_at(last_words, &mut self.http).await.is_err() {
                self.http.abort();
            }
        }
        self.stop_rest.cancel();
        // Health watchers never leave by themselves.
        self.grpc.abort();
        self.metrics.abort();
        tracing::info!("stopped");
        Ok(())
    }

    /// Lets running requests hear of it and gives up: the kubelet starts the process again.
    async fn dead(&mut self, why: &'static str) -> anyhow::Result<()> {
        self.health.set(Readiness::Dead);
        self.abort.cancel();
        self.stop_http.cancel();
        let last_words = Instant::from_std(clock::now()) + LAST_WORDS;
        let _ = timeout_at(last_words, &mut self.http).await;
        Err(anyhow!(why))
    }
}

async fn bind(address: SocketAddr) -> anyhow::Result<(SocketAddr, TcpListener)> {
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on {address}"))?;
    Ok((listener.local_addr()?, listener))
}

fn serve_http(
    listener: TcpListener,
    router: axum::Router,
    stop: CancellationToken,
) -> JoinHandle<std::io::Result<()>> {
    let http = Listener::new(stop.clone());
    http.serve(listener, router);
    tokio::spawn(async move {
        stop.cancelled().await;
        http.finish().await;
        Ok(())
    })
}

/// The base model as far as it does not belong to the device.
struct Base {
    config: Arc<LlamaConfig>,
    llama: Llama,
    tokenizer: TextTokenizer,
    grammars: Option<Grammars>,
    context_tokens: usize,
    build: String,
}

async fn load_base(config: &EngineConfig) -> anyhow::Result<Base> {
    let (path, expected) = (config.base_path.clone(), config.base_digest.clone());
    let wanted_context = config.maximum_context_tokens as usize;
    let held = config.quantization.map_or(Held::AsStored, held);
    let load = move || {
        let dir = Path::new(&path);
        let digest = base_digest(dir)?;
        ensure!(
            digest == expected.as_str(),
            "the base model in {path} has digest {digest}, the configuration says {expected}"
        );
        let chosen = Accelerator::choose()?;
        if chosen.is_unwanted {
            tracing::warn!("{}", chosen.reason);
        } else {
            tracing::info!("{}", chosen.reason);
        }
        let llama = match &chosen.accelerator {
            None => Llama::load_served(dir, held)?,
            Some(gpu) => Llama::load_on(dir, held, gpu)?,
        };
        let model = llama.config().clone();
        tracing::info!(?held, bytes = llama.bytes(), "the base model is loaded");
        let positions = model.max_position_embeddings;
        if wanted_context > positions {
            tracing::warn!(
                wanted_context,
                positions,
                "maximumContextTokens is above what the model has; the model's counts"
            );
        }
        let tokenizer = TextTokenizer::load(dir)?;
        Ok(Base {
            build: build()?,
            llama,
            grammars: grammars(&tokenizer, &model),
            tokenizer,
            context_tokens: match wanted_context {
                0 => positions,
                wanted => wanted.min(positions),
            },
            config: Arc::new(model),
        })
    };
    tokio::task::spawn_blocking(load)
        .await?
        .with_context(|| format!("base model in {}", config.base_path))
}

/// The configuration's word for it, as the model's crate has it.
fn held(format: BaseFormat) -> Held {
    match format {
        BaseFormat::Bf16 => Held::Bf16,
        BaseFormat::Q8_0 => Held::Blocks(Quantization::Q8_0),
        BaseFormat::Q4_0 => Held::Blocks(Quantization::Q4_0),
        BaseFormat::Q4K => Held::Blocks(Quantization::Q4K),
    }
}

/// What makes answers JSON of a schema. A model whose tokenizer does not allow it is served without.
fn grammars(tokenizer: &TextTokenizer, model: &LlamaConfig) -> Option<Grammars> {
    let mut end_tokens = model.eos_token_ids.clone();
    end_tokens.extend(tokenizer.eos());
    match Grammars::new(tokenizer, model.vocab_size, &end_tokens) {
        Ok(grammars) => Some(grammars),
        Err(error) => {
            tracing::warn!(%error, "response_format is refused");
            None
        }
    }
}

fn start_device(
    options: &Options,
    config: &EngineConfig,
    base: &Base,
    metrics: &Arc<Metrics>,
) -> anyhow::Result<(Device, device::End)> {
    let sequences = config.maximum_batch_size.max(1) as usize;
    let format = kv_format(options, config);
    if format == KvFormat::F16 && base.llama.accelerator().is_some() {
        tracing::info!("keys and values are in bf16 on a GPU, not in f16");
    }
    let block_bytes = base.llama.kv_block_bytes(format) as u64;
    let block = KeyValueBlock::new(block_bytes, KV_BLOCK_TOKENS as u64)
        .context("the base model has no keys and values")?;
    let context = base.context_tokens as u64;
    let (bytes, named) = match config.key_value_cache_bytes {
        Some(bytes) => (bytes, format!("spec.engine.keyValueCache of {bytes} bytes")),
        None => (
            u64::from(options.kv_cache_mib) << 20,
            format!("--kv-cache-mib {}", options.kv_cache_mib),
        ),
    };
    ensure!(
        block.blocks_in(bytes) >= block.blocks_for(context),
        "{named} holds {} tokens, the context has {context}, which take {} bytes: give it more or lower maximumContextTokens",
        block.tokens_in(bytes),
        block.bytes_for(context)
    );
    let useful = (sequences as u64).saturating_mul(block.blocks_for(context));
    let blocks = block.blocks_in(bytes).min(useful);
    let pool = base
        .llama
        .kv_pool_of(blocks as usize, format)
        .with_context(|| format!("KV cache: {named}"))?;
    let settings = DeviceSettings {
        sequences,
        pass_tokens: options.pass_tokens as usize,
        admission: options.admission,
        context_tokens: base.context_tokens,
        threads: config.threads,
        queue: permit_count(options, config),
        tokenizer_eos: base.tokenizer.eos(),
    };
    Device::start(base.llama.clone(), pool, &settings, Arc::clone(metrics))
}

/// Bytes of loaded adapters at most. What the endpoint says counts before a flag.
fn adapter_memory(options: &Options, config: &EngineConfig) -> u64 {
    let by_flag = || options.adapter_memory_mib.map(|mib| u64::from(mib) << 20);
    let said = config.adapter_memory_bytes.or_else(by_flag);
    said.unwrap_or(u64::MAX)
}

/// The adapters' files, in the mounted folder or in a bucket. A bucket is not asked anything yet.
fn open_files(
    options: &Options,
    config: &EngineConfig,
    shape: &Arc<LlamaConfig>,
) -> anyhow::Result<AdapterFiles> {
    let (digest, shape) = (config.base_digest.clone(), Arc::clone(shape));
    let Some(bucket) = &config.store else {
        return Ok(AdapterFiles::new(options.store.clone(), digest, shape));
    };
    let store = Store::open_bucket_read_only(bucket, &options.store)
        .with_context(|| format!("copies of adapters in {}", options.store.display()))?;
    Ok(AdapterFiles::in_bucket(store, digest, shape))
}

/// The disk cache, where the endpoint asks for one, a folder for it is named, or the store is in a bucket.
fn open_cache(options: &Options, config: &EngineConfig) -> anyhow::Result<Option<DiskCache>> {
    let by_flag = u64::from(options.adapter_cache_mib) << 20;
    let (dir, budget) = match (&options.adapter_cache, config.disk_cache_bytes) {
        (None, None) if config.store.is_some() => (options.store.join(COPIES), by_flag),
        (None, None) => return Ok(None),
        (Some(dir), None) => (dir.clone(), by_flag),
        (dir, Some(bytes)) => {
            let mounted = || PathBuf::from(pod::ADAPTER_CACHE_DIR);
            (dir.clone().unwrap_or_else(mounted), bytes)
        }
    };
    let cache = DiskCache::open(dir.clone(), budget)
        .with_context(|| format!("cache of adapters in {}", dir.display()))?;
    Ok(Some(cache))
}

/// Requests that run or wait.
fn permit_count(options: &Options, config: &EngineConfig) -> usize {
    config.maximum_batch_size.max(1) as usize + options.maximum_waiting as usize
}

/// Reads the mounted adapters, reports ready, and follows the file.
async fn read_mounted(
    options: Options,
    config: EngineConfig,
    registry: AdapterRegistry,
    health: Health,
) {
    if registry.mounted(&config.adapters).await.is_err() {
        return;
    }
    health.set(Readiness::Ready);
    tracing::info!(adapters = config.adapters.len(), "ready");
    mounted::follow(options.config, registry).await;
}

//! Command line of the router.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use graftwork_contract::pod;

use crate::state::Limits;

const EXAMPLES: &str = "Examples:
  router
      In a pod: configuration, ports and POD_UID are where the operator puts them.

  POD_UID=local router --config router.json --listen-http 127.0.0.1:8080 --drain-delay 0s
      On a workstation, without a wait at the end.";

/// Routes OpenAI requests of one ServingEndpoint to its engines.
#[derive(Debug, Clone, Parser)]
#[command(name = "router", version, about, after_help = EXAMPLES)]
pub struct Settings {
    /// The mounted configuration.
    #[arg(long, default_value = pod::CONFIG_FILE)]
    pub config: PathBuf,
    /// OpenAI API, and Open Inference Protocol (gRPC).
    #[arg(long, default_value_t = any(pod::HTTP_PORT))]
    pub listen_http: SocketAddr,
    /// gRPC for the operator.
    #[arg(long, default_value_t = any(pod::GRPC_PORT))]
    pub listen_grpc: SocketAddr,
    /// /metrics, /healthz and /readyz.
    #[arg(long, default_value_t = any(pod::METRICS_PORT))]
    pub listen_metrics: SocketAddr,
    /// This pod's UID: pushes are signed for it.
    #[arg(long, env = pod::ENV_POD_UID)]
    pub pod_uid: String,
    /// Why the router ends, where it ends with an error, is written here if there is such a file.
    #[arg(long, value_name = "FILE", default_value = pod::TERMINATION_FILE)]
    pub termination_file: PathBuf,
    /// After SIGTERM requests are still accepted for so long, until nobody sends any here.
    #[arg(long, default_value = "5s", value_parser = duration)]
    pub drain_delay: Duration,
    /// What still runs so long after SIGTERM is ended; below the pod's grace period of 120 s.
    #[arg(long, default_value = "110s", value_parser = duration)]
    pub drain_limit: Duration,
    /// Largest request body in bytes.
    #[arg(long, default_value_t = Limits::default().body_bytes)]
    pub body_limit_bytes: usize,
    /// A request body that takes longer to arrive is refused (408).
    #[arg(long, default_value = "60s", value_parser = duration)]
    pub body_timeout: Duration,
    /// All request bodies that are held at one time, in bytes; beyond it clients get 429.
    #[arg(long, default_value_t = Limits::default().held_bytes)]
    pub held_bytes: usize,
    /// An answer that is not a stream is held back until it is whole, up to so many bytes; a larger one
    /// can't be retried.
    #[arg(long, default_value_t = Limits::default().answer_buffer_bytes)]
    pub answer_buffer_bytes: usize,
    /// Answers that leave nothing to chance (temperature 0 or a seed, not streamed) are kept for their callers, up
    /// to so many bytes; 0: none.
    #[arg(long, default_value_t = Limits::default().cache_bytes)]
    pub response_cache_bytes: usize,
    /// An engine that sends nothing for so long is given up (504).
    #[arg(long, default_value = "300s", value_parser = duration)]
    pub answer_timeout: Duration,
    /// A request that has no answer after so long is also sent to another engine, if one has less to do, and the
    /// first answer counts. Left out: never.
    #[arg(long, value_parser = duration)]
    pub hedge_after: Option<Duration>,
}

impl Settings {
    /// Bounds of one request.
    pub fn limits(&self) -> Limits {
        Limits {
            body_bytes: self.body_limit_bytes,
            // One body of the largest size always fits.
            held_bytes: self.held_bytes.max(self.body_limit_bytes),
            answer_buffer_bytes: self.answer_buffer_bytes,
            answer_timeout: self.answer_timeout,
            body_timeout: self.body_timeout,
            hedge_after: self.hedge_after,
            cache_bytes: self.response_cache_bytes,
        }
    }
}

fn any(port: u16) -> SocketAddr {
    (Ipv4Addr::UNSPECIFIED, port).into()
}

fn duration(text: &str) -> Result<Duration, String> {
    let (number, milliseconds) = match (text.strip_suffix("ms"), text.strip_suffix('s')) {
        (Some(number), _) => (number, 1),
        (None, Some(number)) => (number, 1000),
        (None, None) => (text, 1000),
    };
    let number: u64 = number
        .parse()
        .map_err(|_| "write seconds or milliseconds, as 5s or 500ms")?;
    Ok(Duration::from_millis(number.saturating_mul(milliseconds)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent_and_defaults_to_a_pods() {
        use clap::CommandFactory as _;
        Settings::command().debug_assert();
        let settings = Settings::parse_from(["router", "--pod-uid", "u"]);
        assert_eq!(settings.listen_http.to_string(), "0.0.0.0:8080");
        assert_eq!(settings.drain_delay, Duration::from_secs(5));
    }

    #[test]
    fn durations_are_seconds_unless_they_say_milliseconds() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("0"), Ok(Duration::ZERO));
        assert_eq!(duration("7s"), Ok(Duration::from_secs(7)));
        assert!(duration("5 minutes").is_err());
    }
}

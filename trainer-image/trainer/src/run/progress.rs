//! Progress for whoever watches: a gRPC stream beside the training thread, which never waits for it.

use std::net::SocketAddr;
use std::pin::Pin;
use std::time::Duration;

use graftwork_contract::proto::trainer::v1::trainer_server::{Trainer, TrainerServer};
use graftwork_contract::proto::trainer::v1::{Progress, WatchRequest};
use tokio::sync::{mpsc, watch};
use tokio_stream::Stream;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status};

use crate::clock;

/// A watcher is told of changes at most this often.
const INTERVAL: Duration = Duration::from_millis(500);

/// The part of the work that a run is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Reads and verifies its inputs.
    Prepare,
    /// Trains.
    Train,
    /// Scores the test rows.
    Evaluate,
    /// Writes the result.
    Package,
}

impl Stage {
    /// As the contract spells it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Prepare => "Prepare",
            Self::Train => "Train",
            Self::Evaluate => "Evaluate",
            Self::Package => "Package",
        }
    }
}

/// The newest progress; cheap to clone, may be changed from any thread.
#[derive(Debug, Clone)]
pub struct Reporter(watch::Sender<Progress>);

impl Reporter {
    /// A reporter of the pod with this UID, at its beginning.
    pub fn new(pod_uid: String) -> Self {
        Self(watch::Sender::new(Progress {
            pod_uid,
            stage: Stage::Prepare.name().to_owned(),
            at_unix_milliseconds: clock::unix_milliseconds(),
            ..Progress::default()
        }))
    }

    /// Changes the progress, and says when.
    pub fn update(&self, change: impl FnOnce(&mut Progress)) {
        self.0.send_modify(|progress| {
            change(progress);
            progress.at_unix_milliseconds = clock::unix_milliseconds();
        });
    }

    /// Goes to a stage, if it is another one.
    pub fn enter(&self, stage: Stage) {
        if self.latest().stage == stage.name() {
            return;
        }
        tracing::info!(stage = stage.name(), "stage begins");
        self.update(|progress| {
            stage.name().clone_into(&mut progress.stage);
            progress.remaining_seconds = None;
        });
    }

    /// The newest progress.
    pub fn latest(&self) -> Progress {
        self.0.borrow().clone()
    }
}

struct Service(watch::Receiver<Progress>);

#[tonic::async_trait]
impl Trainer for Service {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<Progress, Status>> + Send>>;

    async fn watch(&self, _: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let mut source = self.0.clone();
        let (sender, receiver) = mpsc::channel(1);
        tokio::spawn(async move {
            loop {
                let progress = source.borrow_and_update().clone();
                if sender.send(Ok(progress)).await.is_err() {
                    return;
                }
                tokio::time::sleep(INTERVAL).await;
                if source.changed().await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

/// Serves [`Trainer`] at `address` for the rest of the process's life. Returns the bound address.
/// To be called within a tokio runtime.
///
/// # Errors
/// The address can't be bound.
pub async fn serve(reporter: &Reporter, address: SocketAddr) -> std::io::Result<SocketAddr> {
    let listener = tokio::net::TcpListener::bind(address).await?;
    let bound = listener.local_addr()?;
    let service = TrainerServer::new(Service(reporter.0.subscribe()));
    tokio::spawn(async move {
        let server = tonic::transport::Server::builder().add_service(service);
        if let Err(error) = server
            .serve_with_incoming(TcpListenerStream::new(listener))
            .await
        {
            tracing::warn!(%error, "progress is no longer served; training goes on");
        }
    });
    Ok(bound)
}

#[cfg(test)]
mod tests {
    use graftwork_contract::proto::trainer::v1::trainer_client::TrainerClient;

    use super::*;

    #[tokio::test]
    async fn a_watcher_gets_the_newest_at_once_and_then_each_change() {
        let reporter = Reporter::new("uid".into());
        reporter.update(|progress| progress.step = 3);
        let address = serve(&reporter, "127.0.0.1:0".parse().unwrap())
            .await
            .unwrap();
        let mut client = TrainerClient::connect(format!("http://{address}"))
            .await
            .unwrap();
        let mut stream = client.watch(WatchRequest {}).await.unwrap().into_inner();
        let first = stream.message().await.unwrap().unwrap();
        assert_eq!((first.pod_uid.as_str(), first.step), ("uid", 3));
        assert_eq!(first.stage, "Prepare");
        // What nobody was there to hear is as old as it is.
        let began = first.at_unix_milliseconds;
        assert!(began > 0 && clock::unix_milliseconds() >= began);
        let mut again = client.watch(WatchRequest {}).await.unwrap().into_inner();
        let heard = again.message().await.unwrap().unwrap();
        assert_eq!(heard.at_unix_milliseconds, began);
        // Many changes in no time are one message: the newest state.
        for step in 4..1000 {
            reporter.update(|progress| progress.step = step);
        }
        reporter.enter(Stage::Train);
        let second = stream.message().await.unwrap().unwrap();
        assert_eq!((second.step, second.stage.as_str()), (999, "Train"));
        assert!(second.at_unix_milliseconds >= began);
    }
}

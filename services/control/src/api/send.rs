//! Images that are sent, and the upkeep of all: `content`, `prune`, `verify`.

use std::{os::fd::AsFd, sync::Arc, time::Duration};

use axum::{
    Json,
    body::{Body, BodyDataStream, Bytes},
    extract::{Path, Query, State},
    response::Response,
};
use futures_util::StreamExt as _;
use model::{
    ImageRef, LayerId,
    api::{BuildLine, ErrorKind, PruneAnswer, PruneRequest, VerifyAnswer},
    image::ImageInfo,
};
use rustix::pipe::{PipeFlags, pipe_with};
use serde::Deserialize;
use tokio::{io::AsyncWriteExt as _, net::unix::pipe, sync::mpsc};
use wire::{Fault, apps};

use super::{
    ACTOR,
    build::{ended, image_ref},
    error::{ApiError, parse},
    stream,
};
use crate::{
    calls::{PATIENCE, insist},
    images, pool,
    shared::Control,
};

/// How long a look at all layers of an image may take.
const VERIFY: Duration = Duration::from_secs(600);

/// How long who sends has to hear that no more is wanted.
const HEARD: Duration = Duration::from_secs(5);

/// What is asked beside the content.
#[derive(Debug, Deserialize)]
pub struct Wanted {
    #[serde(default)]
    refresh: bool,
    #[serde(default)]
    keep: bool,
}

/// `POST /v1/images/{reference}/content`: the body is the archive. It goes through, and is kept nowhere on the way.
pub async fn send(
    State(control): State<Arc<Control>>,
    Path(name): Path<String>,
    Query(wanted): Query<Wanted>,
    body: Body,
) -> Result<Response, ApiError> {
    let image = image_ref(&name)?;
    if !matches!(image, ImageRef::Sent { .. }) {
        let message = format!("image {image} is built, not sent");
        return Err(ApiError::new(ErrorKind::Invalid, message).next(format!("bailiwick image build {image}")));
    }
    let (sender, receiver) = mpsc::channel(stream::WAITING);
    tokio::spawn(async move {
        let made = pass_on(&control, &image, wanted.refresh, body, &sender);
        let (made, rest) = images::keep_for_apply(&control, &image, wanted.keep, made).await;
        let _ = sender.send(ended(&control, &image, wanted.refresh, made).await).await;
        drop(sender);
        // Who is cut off while sending may not read the answer any more.
        let _ = tokio::time::timeout(HEARD, rest.for_each(async |_| ())).await;
    });
    Ok(stream::lines(receiver))
}

/// Hands the body on to `apps`; how it ended, and what of the body was not wanted.
async fn pass_on(
    control: &Control,
    image: &ImageRef,
    refresh: bool,
    body: Body,
    lines: &mpsc::Sender<BuildLine>,
) -> (Result<ImageInfo, Fault>, BodyDataStream) {
    let mut body = body.into_data_stream();
    let begun = async {
        let (theirs, ours) = pipe_with(PipeFlags::CLOEXEC).map_err(std::io::Error::from)?;
        let send = apps::Send { image: image.clone(), refresh };
        let steps = control.apps.stream_with_fds(&send, &[theirs.as_fd()]).await?;
        Ok((pipe::Sender::from_owned_fd(ours)?, steps))
    };
    let (mut pipe, mut steps) = match begun.await {
        Ok(begun) => begun,
        Err(fault) => return (Err(fault), body),
    };
    let follow = async {
        loop {
            match steps.next().await? {
                Some(apps::BuildStep::Progress { step, done, total }) => {
                    let _ = lines.send(BuildLine::Progress { step, done, total }).await;
                }
                Some(apps::BuildStep::Done(info)) => return Ok(info),
                None => return Err(Fault::new(ErrorKind::Failed, "it ended without a result")),
            }
        }
    };
    let pump = async {
        // a body that breaks off ends the pipe early; the digest shows it
        while let Some(Ok(part)) = body.next().await {
            if pipe.write_all(&part).await.is_err() {
                break;
            }
        }
        drop(pipe);
    };
    let made = {
        tokio::pin!(follow);
        tokio::select! {
            ended = &mut follow => ended,
            () = pump => follow.await,
        }
    };
    (made, body)
}

/// `POST /v1/images/prune`
pub async fn prune(State(control): State<Arc<Control>>, body: Bytes) -> Result<Json<PruneAnswer>, ApiError> {
    let PruneRequest { dry_run } = parse(&body)?;
    // An apply that wants one of these images must come before or after.
    let _one_at_a_time = control.changing.lock().await;
    let keep = images::in_use(&control);
    if !dry_run {
        pool::forget(&control, |image| !keep.contains(image)).await?;
    }
    let pruned = insist(&control.apps, &apps::Prune { keep, dry_run }, PATIENCE).await?;
    let answer = PruneAnswer {
        images: pruned.images.iter().map(|info| info.reference.to_string()).collect(),
        layers: pruned.layers.iter().map(ToString::to_string).collect(),
    };
    if !dry_run {
        images::refresh(&control, PATIENCE).await?;
        for image in &answer.images {
            control.history.record(None, "removed", image.clone(), ACTOR);
        }
    }
    Ok(Json(answer))
}

/// `POST /v1/images/{reference}/verify`
pub async fn verify(
    State(control): State<Arc<Control>>,
    Path(name): Path<String>,
) -> Result<Json<VerifyAnswer>, ApiError> {
    let image = image_ref(&name)?;
    let found = insist(&control.apps, &apps::Verify { image: image.clone() }, VERIFY).await?;
    let next = (!found.damaged.is_empty()).then(|| mend(&image));
    let layers: Vec<_> = found.damaged.iter().map(|(layer, _)| layer).collect();
    let others = sharing(&control, &image, &layers);
    let damaged = found.damaged.into_iter().map(|(id, what)| (id.to_string(), what)).collect();
    Ok(Json(VerifyAnswer { image: image.to_string(), damaged, others, next }))
}

/// The images besides `image` that have one of `layers`.
pub fn sharing(control: &Control, image: &ImageRef, layers: &[&LayerId]) -> Vec<String> {
    let has = |info: &ImageInfo| info.reference != *image && info.layers.iter().any(|layer| layers.contains(&layer));
    control.images.all().into_iter().filter(has).map(|info| info.reference.to_string()).collect()
}

/// What makes an image whole again.
pub fn mend(image: &ImageRef) -> String {
    match image {
        ImageRef::Debian(_) => format!("bailiwick image build --refresh {image}"),
        ImageRef::Sent { kind, .. } => {
            format!("bailiwick image build --refresh {}:PATH, where {image} came from", kind.as_str())
        }
    }
}

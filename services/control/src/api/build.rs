//! `/v1/images`

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use axum::{
    Json,
    body::Bytes,
    extract::{Path, State},
    http::StatusCode,
    response::Response,
};
use model::{
    ImageRef, VpsName,
    api::{BuildLine, BuildRequest, ErrorAnswer, ErrorKind, ImageRow},
    image::{ImageInfo, SentKind},
};
use tokio::sync::mpsc;
use wire::{Fault, apps};

use super::{
    ACTOR,
    error::{ApiError, parse},
    stream,
};
use crate::{
    calls::{PATIENCE, insist},
    images, pool,
    shared::Control,
};

/// How often a build that was cut off because `apps` was restarted is taken up again.
const RESUMES: u32 = 3;
/// Pause before that.
const PAUSE: Duration = Duration::from_millis(500);

pub(super) fn image_ref(text: &str) -> Result<ImageRef, ApiError> {
    text.parse().map_err(|error: model::image::ImageRefError| ApiError::new(ErrorKind::Invalid, error.to_string()))
}

fn users(control: &Control, image: &ImageRef) -> Vec<VpsName> {
    let uses = |vps: &&Arc<crate::driver::Vps>| vps.spec().image == *image;
    control.all().values().filter(uses).map(|vps| vps.name.clone()).collect()
}

fn rows(control: &Control, images: &[ImageInfo]) -> Vec<ImageRow> {
    let mut shared: BTreeMap<_, usize> = BTreeMap::new();
    for layer in images.iter().flat_map(|image| &image.layers) {
        *shared.entry(layer).or_default() += 1;
    }
    let row = |image: &ImageInfo| {
        let sized = || image.layers.iter().zip(&image.sizes);
        ImageRow {
            reference: image.reference.to_string(),
            layers: image.layers.iter().map(ToString::to_string).collect(),
            size: image.sizes.iter().sum(),
            own_size: sized().filter(|(layer, _)| shared.get(layer) == Some(&1)).map(|(_, size)| size).sum(),
            built: image.built,
            used_by: users(control, &image.reference),
        }
    };
    images.iter().map(row).collect()
}

/// `GET /v1/images`
pub async fn images(State(control): State<Arc<Control>>) -> Result<Json<Vec<ImageRow>>, ApiError> {
    images::refresh(&control, PATIENCE).await?;
    Ok(Json(rows(&control, &control.images.all())))
}

/// `POST /v1/images/build`
pub async fn build(State(control): State<Arc<Control>>, body: Bytes) -> Result<Response, ApiError> {
    let request: BuildRequest = parse(&body)?;
    let image = image_ref(&request.image)?;
    let (sender, receiver) = mpsc::channel(stream::WAITING);
    tokio::spawn(async move {
        let made = follow(&control, &image, request.refresh, &sender);
        let made = images::keep_for_apply(&control, &image, request.keep, made).await;
        // The build goes on without a reader; it is only not told.
        let _ = sender.send(ended(&control, &image, request.refresh, made).await).await;
    });
    Ok(stream::lines(receiver))
}

/// The last line of a build, which is an event too.
pub(super) async fn ended(
    control: &Arc<Control>,
    image: &ImageRef,
    refresh: bool,
    made: Result<ImageInfo, Fault>,
) -> BuildLine {
    let fault = match made {
        Ok(info) => return done(control, refresh, info).await,
        Err(fault) => fault,
    };
    control.history.record(None, "build-failed", format!("{image}: {fault}"), ACTOR);
    let next = match (fault.kind, image) {
        (ErrorKind::Invalid, ImageRef::Sent { kind: SentKind::Tar, .. }) => {
            "make the archive without it, and build it again"
        }
        (ErrorKind::Invalid, ImageRef::Sent { kind: SentKind::Dir, .. }) => "mend the directory, and build it again",
        (ErrorKind::Lacking, ImageRef::Sent { .. }) => "make room, then build it again: bailiwick image prune",
        _ => "see bailiwick logs apps",
    };
    let next = next.to_owned();
    let message = format!("image {image} could not be built: {fault}");
    BuildLine::Failed(ErrorAnswer { message, next: Some(next), problems: Vec::new(), kind: fault.kind })
}

async fn done(control: &Arc<Control>, refresh: bool, info: ImageInfo) -> BuildLine {
    if let Err(fault) = images::refresh(control, PATIENCE).await {
        tracing::warn!(%fault, "the images are not known");
    }
    // Those there are may be of the layers it had before, or of damaged ones that were replaced.
    let forgotten = pool::forget(control, |image| *image == info.reference).await;
    let renewed = if refresh { pool::renew(control, &info.layers).await } else { Ok(()) };
    if let Err(fault) = forgotten.and(renewed) {
        tracing::warn!(%fault, "what is prepared on what an image was before is left");
    }
    control.history.record(None, "built", info.reference.to_string(), ACTOR);
    let all = control.images.all();
    let row = rows(control, &all).into_iter().find(|row| row.reference == info.reference.to_string());
    let only = || rows(control, std::slice::from_ref(&info)).remove(0);
    BuildLine::Done(row.unwrap_or_else(only))
}

async fn follow(
    control: &Control,
    image: &ImageRef,
    refresh: bool,
    lines: &mpsc::Sender<BuildLine>,
) -> Result<ImageInfo, Fault> {
    let mut resumes = 0;
    loop {
        let build = apps::Build { image: image.clone(), refresh };
        let result: Result<ImageInfo, Fault> = async {
            let mut steps = control.apps.stream(&build).await?;
            loop {
                match steps.next().await? {
                    Some(apps::BuildStep::Progress { step, done, total }) => {
                        // A reader that left does not end the build.
                        let _ = lines.send(BuildLine::Progress { step, done, total }).await;
                    }
                    Some(apps::BuildStep::Done(info)) => return Ok(info),
                    None => return Err(Fault::new(ErrorKind::Failed, "it ended without a result")),
                }
            }
        }
        .await;
        match result {
            Err(fault) if fault.kind == ErrorKind::Unavailable && resumes < RESUMES => resumes += 1,
            result => return result,
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// `DELETE /v1/images/{reference}`
pub async fn remove(State(control): State<Arc<Control>>, Path(name): Path<String>) -> Result<StatusCode, ApiError> {
    let image = image_ref(&name)?;
    // An apply that wants this image must come before or after.
    let _one_at_a_time = control.changing.lock().await;
    images::refresh(&control, PATIENCE).await?;
    if !control.images.has(&image) {
        return Err(ApiError::new(ErrorKind::NotFound, format!("no image {image}")).next("bailiwick images"));
    }
    let mut used = users(&control, &image);
    used.extend(control.deleting().values().filter(|vps| vps.spec().image == image).map(|vps| vps.name.clone()));
    if let Some(first) = used.first() {
        let names: Vec<_> = used.iter().map(ToString::to_string).collect();
        let message = format!("image {image} is used by {}", names.join(", "));
        return Err(ApiError::new(ErrorKind::Conflict, message).next(format!("bailiwick delete {first}")));
    }
    pool::forget(&control, |other| *other == image).await?;
    insist(&control.apps, &apps::Remove { image: image.clone() }, PATIENCE).await?;
    images::refresh(&control, PATIENCE).await?;
    control.history.record(None, "removed", image.to_string(), ACTOR);
    Ok(StatusCode::NO_CONTENT)
}

//! `images`, `image build`, `image rm`.

use std::{path::Path, time::Duration};

use hyper::Method;
use indicatif::{ProgressBar, ProgressStyle};
use model::{
    ImageRef,
    api::{BuildLine, BuildRequest, ErrorKind, ImageRow, PruneAnswer, PruneRequest, VerifyAnswer},
    image::ImageSource,
    limits::{show_bytes, show_duration_ms},
};

use super::{sent::Local, time::now_ms};
use crate::{
    arguments::{Form, Image},
    client::{Host, Lines, segment},
    failure::{Failure, Result},
    output::{self, harmless},
    table,
};

/// Lists images.
pub async fn list(host: &Host, form: Form) -> Result<()> {
    let rows: Vec<ImageRow> = host.get("/v1/images").await?;
    if form.json { output::json(&rows) } else { output::own(&show(&rows, now_ms())) }
}

/// Builds or removes.
pub async fn run(host: &Host, image: Image) -> Result<()> {
    match image {
        Image::Build { image, name, refresh, form } => {
            let row = match image {
                ImageSource::Image(image) => build(host, &image.to_string(), refresh, false).await?,
                ImageSource::Path(kind, path) => {
                    send(host, &Local::read(kind, &path, Path::new(""), name)?, refresh, false).await?
                }
            };
            if form.json { output::json(&row) } else { output::line(&built(&row)) }
        }
        Image::Ls { form } => list(host, form).await,
        Image::Inspect { image, form: _ } => {
            let rows: Vec<ImageRow> = host.get("/v1/images").await?;
            let found = rows.into_iter().find(|row| row.reference == image.to_string());
            let missing = || Failure::new(ErrorKind::NotFound, format!("no image {image}")).next("bailiwick image ls");
            output::json(&found.ok_or_else(missing)?)
        }
        Image::Prune { dry_run, form } => {
            let answer: PruneAnswer = host.post("/v1/images/prune", &PruneRequest { dry_run }).await?;
            if form.json { output::json(&answer) } else { output::own(&pruned(&answer, dry_run)) }
        }
        Image::Verify { image, form } => verify(host, image, form).await,
        Image::Rm { images } => {
            for image in images.iter().map(ToString::to_string) {
                host.act(Method::DELETE, &format!("/v1/images/{}", segment(&image))).await?;
                output::line(&format!("image {image} removed"))?;
            }
            Ok(())
        }
    }
}

/// Reads the layers of one image, or of all.
async fn verify(host: &Host, image: Option<ImageRef>, form: Form) -> Result<()> {
    let names = match image {
        Some(image) => vec![image.to_string()],
        None => host.get::<Vec<ImageRow>>("/v1/images").await?.into_iter().map(|row| row.reference).collect(),
    };
    let mut answers = Vec::new();
    for name in names {
        let path = format!("/v1/images/{}/verify", segment(&name));
        answers.push(host.post::<VerifyAnswer>(&path, &serde_json::json!({})).await?);
    }
    if form.json {
        output::json(&answers)?;
    }
    for answer in answers.iter().filter(|answer| answer.damaged.is_empty() && !form.json) {
        output::line(&format!("image {} is whole", answer.image))?;
    }
    match answers.iter().find_map(|answer| Some((answer, answer.damaged.values().next()?))) {
        Some((answer, what)) => {
            let others = answer.others.iter().map(|image| harmless(image)).collect::<Vec<_>>().join(", ");
            let others = if others.is_empty() { others } else { format!("; it is a layer of {others} too") };
            let failure = Failure::new(ErrorKind::Failed, format!("image {}: {what}{others}", answer.image));
            Err(failure.next(answer.next.clone().unwrap_or_default()))
        }
        None => Ok(()),
    }
}

fn pruned(answer: &PruneAnswer, dry_run: bool) -> String {
    let done = if dry_run { "would be removed" } else { "removed" };
    let images = answer.images.iter().map(|image| format!("image {} {done}\n", harmless(image)));
    let layers = match answer.layers.len() {
        0 => "no layers".to_owned(),
        1 => "1 layer".to_owned(),
        n => format!("{n} layers"),
    };
    images.chain([format!("{layers} {done}\n")]).collect()
}

/// Sends an archive or a directory, unless the host has it; with `keep` for an apply that comes next.
pub async fn send(host: &Host, local: &Local, refresh: bool, keep: bool) -> Result<ImageRow> {
    let image = local.image.to_string();
    let path = format!("/v1/images/{}/content?refresh={refresh}&keep={keep}", segment(&image));
    let lines = host.send_stream(&path, local.body()).await?;
    follow(lines, &image).await
}

fn built(row: &ImageRow) -> String {
    let layers = if row.layers.len() == 1 { "1 layer".to_owned() } else { format!("{} layers", row.layers.len()) };
    format!("image {} built: {} in {}", row.reference, show_bytes(row.size), layers)
}

/// Builds an image and shows how it goes: a bar on a terminal, a line for each step otherwise, on standard error.
pub async fn build(host: &Host, image: &str, refresh: bool, keep: bool) -> Result<ImageRow> {
    let request = BuildRequest { image: image.to_owned(), refresh, keep };
    follow(host.stream(Method::POST, "/v1/images/build", Some(&request)).await?, image).await
}

async fn follow(mut lines: Lines, image: &str) -> Result<ImageRow> {
    let mut progress = Progress::new(image);
    while let Some(line) = lines.next::<BuildLine>().await? {
        match line {
            BuildLine::Progress { step, done, total } => progress.show(&step, done, total),
            BuildLine::Done(row) => return Ok(row),
            BuildLine::Failed(answer) => return Err(answer.into()),
        }
    }
    let message = format!("the build of {image} broke off");
    Err(Failure::new(ErrorKind::Unavailable, message).next(format!("bailiwick image build {image}")))
}

/// How a build goes. Gone when it is dropped.
struct Progress {
    image: String,
    step: String,
    bar: ProgressBar,
}

impl Progress {
    fn new(image: &str) -> Self {
        // Draws nothing where standard error is not a terminal.
        let bar = ProgressBar::new_spinner();
        bar.enable_steady_tick(Duration::from_millis(120));
        Self { image: image.to_owned(), step: String::new(), bar }
    }

    fn show(&mut self, step: &str, done: u64, total: u64) {
        let step = harmless(step);
        if step != self.step {
            if self.bar.is_hidden() {
                eprintln!("image {}  {step}", self.image);
            }
            self.bar.set_message(format!("image {}  {step}", self.image));
            self.bar.set_style(style(total));
            self.step = step;
        }
        if total > 0 {
            self.bar.set_length(total);
        }
        self.bar.set_position(done);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

fn style(total: u64) -> ProgressStyle {
    let template =
        if total > 0 { "{spinner} {msg} {wide_bar} {percent}% {elapsed}" } else { "{spinner} {msg} {elapsed}" };
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

fn show(rows: &[ImageRow], now_ms: u64) -> String {
    if rows.is_empty() {
        return "no images; `bailiwick apply` builds those that are missing\n".to_owned();
    }
    table::text(
        ["IMAGE", "SIZE", "OWN", "LAYERS", "BUILT", "USED BY"],
        rows.iter().map(|row| {
            let age = show_duration_ms(now_ms.saturating_sub(row.built.saturating_mul(1000)));
            let users: Vec<_> = row.used_by.iter().map(ToString::to_string).collect();
            [
                row.reference.clone(),
                show_bytes(row.size),
                show_bytes(row.own_size),
                row.layers.len().to_string(),
                format!("{age} ago"),
                if users.is_empty() { "-".to_owned() } else { users.join(", ") },
            ]
        }),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_shown_with_its_sizes_and_users() {
        let row = ImageRow {
            reference: "debian:nginx-light".into(),
            layers: vec!["a".into(), "b".into()],
            size: 150 << 20,
            own_size: 5 << 20,
            built: 1000,
            used_by: vec!["blog".parse().expect("a name"), "shop".parse().expect("a name")],
        };
        let expected = "\
IMAGE               SIZE     OWN      LAYERS  BUILT   USED BY
debian:nginx-light  150 MiB  5.0 MiB  2       2h ago  blog, shop
";
        assert_eq!(show(&[row], 1_000_000 + 7_200_000), expected);
    }
}

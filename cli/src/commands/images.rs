//! `images`, `image build`, `image rm`.

use std::time::Duration;

use hyper::Method;
use indicatif::{ProgressBar, ProgressStyle};
use model::{
    api::{BuildLine, BuildRequest, ErrorKind, ImageRow},
    limits::{show_bytes, show_duration_ms},
};

use super::time::now_ms;
use crate::{
    arguments::{Form, Image},
    client::{Host, segment},
    failure::{Failure, Result},
    output, table,
};

/// Lists images.
pub async fn list(host: &Host, form: Form) -> Result<()> {
    let rows: Vec<ImageRow> = host.get("/v1/images").await?;
    if form.json { output::json(&rows) } else { output::own(&show(&rows, now_ms())) }
}

/// Builds or removes.
pub async fn run(host: &Host, image: Image) -> Result<()> {
    match image {
        Image::Build { image, refresh, form } => {
            let row = build(host, &image.to_string(), refresh).await?;
            if form.json { output::json(&row) } else { output::line(&built(&row)) }
        }
        Image::Rm { images } => {
            for image in images.iter().map(ToString::to_string) {
                host.act(Method::DELETE, &format!("/v1/images/{}", segment(&image))).await?;
                output::line(&format!("image {image} removed"))?;
            }
            Ok(())
        }
    }
}

fn built(row: &ImageRow) -> String {
    let layers = if row.layers.len() == 1 { "1 layer".to_owned() } else { format!("{} layers", row.layers.len()) };
    format!("image {} built: {} in {}", row.reference, show_bytes(row.size), layers)
}

/// Builds an image and shows how it goes: a bar on a terminal, a line for each step otherwise, on standard error.
pub async fn build(host: &Host, image: &str, refresh: bool) -> Result<ImageRow> {
    let request = BuildRequest { image: image.to_owned(), refresh };
    let mut lines = host.stream(Method::POST, "/v1/images/build", Some(&request)).await?;
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
        let step = output::harmless(step);
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

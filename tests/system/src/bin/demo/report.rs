//! What the demo says.

/// Prints steps and counts those that failed.
#[derive(Debug, Default)]
pub struct Report {
    /// Steps that held.
    pub passed: u32,
    /// Steps that did not.
    pub failed: u32,
}

impl Report {
    /// A line.
    pub fn say(&self, text: &str) {
        println!("{text}");
    }

    /// The next chapter.
    pub fn title(&self, text: &str) {
        println!("\n== {text}");
    }

    /// A command line with what it printed.
    pub fn shown(&self, command: &str, output: &str) {
        println!("$ {command}\n{}", output.trim_end());
    }

    /// Whether something held; `detail` is shown when it did not.
    pub fn check(&mut self, what: &str, holds: bool, detail: &str) {
        if holds {
            self.passed += 1;
            println!("ok    {what}");
        } else {
            self.failed += 1;
            println!("FAIL  {what}\n      {}", detail.trim_end().replace('\n', "\n      "));
        }
    }

    /// The last lines.
    pub fn summary(&self) {
        println!("\n{} passed, {} failed", self.passed, self.failed);
    }
}

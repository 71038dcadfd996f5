//! Listings: columns two blanks apart, without lines, as wide as what they hold.

use comfy_table::{ContentArrangement, Table, presets};

use crate::output::harmless;

/// The text of a table; the last column is not padded.
pub fn text<const N: usize>(header: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled).set_header(header);
    for row in rows {
        // One row is one line, whatever a tenant wrote.
        table.add_row(row.map(|cell| harmless(&cell.replace(['\n', '\t'], " "))));
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.lines().map(|line| format!("{}\n", line.trim_end())).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn columns_are_two_blanks_apart() {
        let rows = [["a".to_owned(), "bb\x1b[1m\nc".to_owned()], ["longer".to_owned(), String::new()]];
        assert_eq!(super::text(["NAME", "X"], rows), "NAME    X\na       bb\\x1b[1m c\nlonger\n");
    }
}

//! The terminal: a block of lines that is redrawn where it stands, and the terminal as it was afterwards.
//!
//! The block stays within the ordinary screen: what was printed before it stays above, and its last picture stays in the
//! scroll-back. Ctrl-C and Ctrl-Z keep working: only echo and line mode are off, and the cursor is hidden only while a
//! picture is drawn. Dropping restores everything.

use std::io::{self, Stdout, Write};

use crossterm::cursor::{Hide, MoveTo, MoveToColumn, MoveUp, Show};
use crossterm::queue;
use crossterm::style::{Attribute, ContentStyle, Print, PrintStyledContent, SetAttribute, Stylize};
use crossterm::terminal::{
    BeginSynchronizedUpdate, Clear, ClearType, DisableLineWrap, EnableLineWrap, EndSynchronizedUpdate,
};
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};

use super::table::{Frame, Paint};

/// Size that is taken when the terminal does not tell its own. Source: the VT100.
const SIZE_DEFAULT: (u16, u16) = (80, 24);

/// The terminal while the table is on it.
pub(crate) struct Screen {
    out: Stdout,
    /// Its modes before; `None` when stdin is no terminal.
    before: Option<Termios>,
    /// Lines of the block on it.
    lines: u16,
    size: (u16, u16),
}

impl Screen {
    /// Takes the terminal.
    pub(crate) fn open() -> Self {
        let stdin = io::stdin();
        let before = tcgetattr(&stdin).ok();
        if let Some(before) = &before {
            let mut quiet = before.clone();
            quiet.local_modes -= LocalModes::ECHO | LocalModes::ICANON;
            let _ = tcsetattr(&stdin, OptionalActions::Flush, &quiet); // The table works with echo too.
        }
        Self {
            out: io::stdout(),
            before,
            lines: 0,
            size: size(),
        }
    }

    /// Columns and lines.
    pub(crate) fn size(&self) -> (usize, usize) {
        (self.size.0.into(), self.size.1.into())
    }

    /// Learns the size anew. After a change the lines of the block may be anywhere: the next picture clears the screen.
    pub(crate) fn measure(&mut self) -> io::Result<()> {
        let size = size();
        if size == self.size {
            return Ok(());
        }
        self.size = size;
        self.lines = 0;
        queue!(self.out, Clear(ClearType::All), MoveTo(0, 0))
    }

    /// Draws a picture over the one before.
    pub(crate) fn draw(&mut self, frame: &Frame) -> io::Result<()> {
        let picture = picture(frame, self.lines)?;
        self.lines = u16::try_from(frame.len()).unwrap_or(u16::MAX);
        self.out.write_all(&picture)?;
        self.out.flush()
    }
}

/// The octets that draw `frame` over one of `lines` lines. A line is cleared before it is written: after one as wide as the
/// screen the cursor stands on its last character, and a clear would take that away.
fn picture(frame: &Frame, lines: u16) -> io::Result<Vec<u8>> {
    let mut picture = Vec::new();
    queue!(
        picture,
        BeginSynchronizedUpdate,
        Hide,
        DisableLineWrap,
        MoveToColumn(0)
    )?;
    if lines > 0 {
        queue!(picture, MoveUp(lines))?;
    }
    for (paint, line) in frame {
        queue!(picture, Clear(ClearType::UntilNewLine))?;
        queue!(
            picture,
            PrintStyledContent(style(*paint).apply(line)),
            Print("\r\n")
        )?;
    }
    queue!(
        picture,
        Clear(ClearType::FromCursorDown),
        EnableLineWrap,
        Show,
        EndSynchronizedUpdate
    )?;
    Ok(picture)
}

impl Drop for Screen {
    fn drop(&mut self) {
        // A terminal that is gone needs no restoring.
        let _ = queue!(self.out, EnableLineWrap, SetAttribute(Attribute::Reset), Show);
        let _ = self.out.flush();
        if let Some(before) = &self.before {
            let _ = tcsetattr(io::stdin(), OptionalActions::Flush, before);
        }
    }
}

fn size() -> (u16, u16) {
    match crossterm::terminal::size() {
        Ok((columns, lines)) if columns > 0 && lines > 0 => (columns, lines),
        _ => SIZE_DEFAULT,
    }
}

/// Without colours when `NO_COLOR` is set: crossterm sees to that.
fn style(paint: Paint) -> ContentStyle {
    let plain = ContentStyle::new();
    match paint {
        Paint::Frame => plain.bold(),
        Paint::Live => plain,
        Paint::Ended => plain.dim(),
        Paint::Alarm => plain.red(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_cleared_between_a_line_and_its_end() {
        let frame: Frame = vec![
            (Paint::Live, "as wide as the screen".into()),
            (Paint::Ended, "short".into()),
        ];
        let drawn = String::from_utf8(picture(&frame, 2).unwrap()).unwrap();
        for (_, line) in &frame {
            let after = &drawn[drawn.find(line.as_str()).unwrap()..];
            let to_its_end = &after[..after.find("\r\n").unwrap()];
            assert!(!to_its_end.contains("\u{1b}[K"), "{to_its_end:?}");
            let before = &drawn[..drawn.find(line.as_str()).unwrap()];
            assert!(before.rfind("\u{1b}[K") > before.rfind("\r\n"), "{before:?}");
        }
    }
}

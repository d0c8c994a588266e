//! Where an instruction comes from: the line of CUDA code that the compiler notes in front of it (`-lineinfo`).

/// `kernel.cu:12` for the instruction on a line of PTX, from 1; `None` where the text does not say.
pub(super) fn location(text: &[String], line: u32) -> Option<String> {
    let above = text.get(..line as usize)?;
    let (file, at) = above.iter().rev().find_map(|line| {
        let mut words = line.trim_start().strip_prefix(".loc")?.split_whitespace();
        // Line 0 is code that the compiler has made of several.
        let (file, at) = (words.next()?, words.next()?);
        (at != "0").then_some((file, at))
    })?;
    // Not of a function that stands before.
    let note = format!(".loc {file} {at} ");
    let noted = |line: &str| {
        line.split_whitespace().take(3).map(|word| [word, " "].concat()).collect::<String>() == note
    };
    let after = above.iter().rev().take_while(|line| !noted(line));
    if after.map(|line| line.trim()).any(|line| line == "}" || line.starts_with(".entry")) {
        return None;
    }
    let name = text.iter().find_map(|line| {
        let rest = line.trim_start().strip_prefix(".file")?.trim_start().strip_prefix(file)?;
        rest.split('"').nth(1).filter(|_| rest.starts_with(char::is_whitespace))
    })?;
    Some(format!("{name}:{at}"))
}

//! Who the container runs as: the image's `/etc/passwd` and `/etc/group`.
//!
//! The rules are those of other container runtimes (runc's `libcontainer/user`): a name must be
//! known, a number need not be; a group that is given replaces the user's own and the
//! supplementary ones; without one, every group that lists the user counts.

use std::io::{self, Read};

/// More of a file than this is not read.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Who to become.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
    pub home: String,
}

/// Why a user cannot be found.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum UserError {
    #[error("The image has no user {0:?} in /etc/passwd")]
    NoUser(String),
    #[error("The image has no group {0:?} in /etc/group")]
    NoGroup(String),
    #[error("User {0:?} is not of the form user, uid, user:group or uid:gid")]
    Malformed(String),
}

struct PasswdEntry {
    name: String,
    uid: u32,
    gid: u32,
    home: String,
}

struct GroupEntry {
    name: String,
    gid: u32,
    members: Vec<String>,
}

/// Finds `user` in the image whose root is the process's own.
pub fn find(user: &str) -> io::Result<Result<User, UserError>> {
    Ok(find_in(user, &read("/etc/passwd")?, &read("/etc/group")?))
}

/// An image without the file knows nobody.
fn read(path: &str) -> io::Result<String> {
    let mut bytes = Vec::new();
    match std::fs::File::open(path) {
        Ok(file) => file.take(MAX_FILE_BYTES).read_to_end(&mut bytes)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
        Err(error) => return Err(error),
    };
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn find_in(text: &str, passwd: &str, group: &str) -> Result<User, UserError> {
    let (user, wanted_group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
        None => (text, None),
    };
    if wanted_group.is_some_and(|group| group.contains(':')) {
        return Err(UserError::Malformed(text.to_owned()));
    }
    let user = if user.is_empty() { "0" } else { user };
    let entry = find_user(user, passwd);
    let uid = match (&entry, user.parse()) {
        (Some(entry), _) => entry.uid,
        (None, Ok(uid)) => uid,
        (None, Err(_)) => return Err(UserError::NoUser(user.to_owned())),
    };
    let (gid, groups) = match (wanted_group, &entry) {
        (Some(wanted), _) => (find_group(wanted, group)?, Vec::new()),
        (None, Some(entry)) => (entry.gid, groups_of(&entry.name, group)),
        (None, None) => (0, Vec::new()),
    };
    let home = entry
        .map(|entry| entry.home)
        .filter(|home| !home.is_empty());
    Ok(User {
        uid,
        gid,
        groups,
        home: home.unwrap_or_else(|| "/".to_owned()),
    })
}

/// By name first: a name may consist of digits.
fn find_user(user: &str, passwd: &str) -> Option<PasswdEntry> {
    let entries = || passwd.lines().filter_map(passwd_entry);
    let uid: Option<u32> = user.parse().ok();
    entries()
        .find(|entry| entry.name == user)
        .or_else(|| entries().find(|entry| Some(entry.uid) == uid))
}

fn find_group(wanted: &str, group: &str) -> Result<u32, UserError> {
    let named = group
        .lines()
        .filter_map(group_entry)
        .find(|entry| entry.name == wanted);
    match (named, wanted.parse()) {
        (Some(entry), _) => Ok(entry.gid),
        (None, Ok(gid)) => Ok(gid),
        (None, Err(_)) => Err(UserError::NoGroup(wanted.to_owned())),
    }
}

fn groups_of(user: &str, group: &str) -> Vec<u32> {
    let entries = group.lines().filter_map(group_entry);
    entries
        .filter(|entry| entry.members.iter().any(|member| member == user))
        .map(|entry| entry.gid)
        .collect()
}

/// `name:password:uid:gid:comment:home:shell`; a line that is none is skipped.
fn passwd_entry(line: &str) -> Option<PasswdEntry> {
    let mut fields = line.split(':');
    let name = fields.next()?.to_owned();
    let uid = fields.nth(1)?.parse().ok()?;
    let gid = fields.next()?.parse().ok()?;
    let home = fields.nth(1).unwrap_or_default().to_owned();
    Some(PasswdEntry {
        name,
        uid,
        gid,
        home,
    })
}

/// `name:password:gid:member,member`.
fn group_entry(line: &str) -> Option<GroupEntry> {
    let mut fields = line.split(':');
    let name = fields.next()?.to_owned();
    let gid = fields.nth(1)?.parse().ok()?;
    let members = fields.next().unwrap_or_default();
    let members = members
        .split(',')
        .filter(|member| !member.is_empty())
        .map(str::to_owned);
    Some(GroupEntry {
        name,
        gid,
        members: members.collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n# comment\nbroken:x\n\
        app:x:1000:1001:An app:/srv/app:/bin/sh\n42:x:7:7::/seven:\nnohome:x:8:8\n";
    const GROUP: &str =
        "root:x:0:\nvideo:x:44:other,app\naudio:x:29:app\nlogs:x:50:application\nwheel:x:10\n";

    fn find(text: &str) -> Result<User, UserError> {
        find_in(text, PASSWD, GROUP)
    }

    fn user(uid: u32, gid: u32, groups: &[u32], home: &str) -> Result<User, UserError> {
        Ok(User {
            uid,
            gid,
            groups: groups.to_vec(),
            home: home.to_owned(),
        })
    }

    #[test]
    fn no_user_means_root() {
        assert_eq!(find(""), user(0, 0, &[], "/root"));
        assert_eq!(find_in("", "", ""), user(0, 0, &[], "/"));
    }

    #[test]
    fn user_by_name_and_by_number_has_its_groups_and_home() {
        assert_eq!(find("app"), user(1000, 1001, &[44, 29], "/srv/app"));
        assert_eq!(find("1000"), user(1000, 1001, &[44, 29], "/srv/app"));
        assert_eq!(find("nohome"), user(8, 8, &[], "/"));
    }

    #[test]
    fn group_that_is_given_replaces_all_others() {
        assert_eq!(find("app:video"), user(1000, 44, &[], "/srv/app"));
        assert_eq!(find("app:99"), user(1000, 99, &[], "/srv/app"));
        assert_eq!(find(":wheel"), user(0, 10, &[], "/root"));
        assert_eq!(find("app:"), user(1000, 1001, &[44, 29], "/srv/app"));
    }

    #[test]
    fn number_need_not_be_known_and_a_name_must() {
        assert_eq!(find("5000"), user(5000, 0, &[], "/"));
        assert_eq!(find("5000:6000"), user(5000, 6000, &[], "/"));
        assert_eq!(find("nobody"), Err(UserError::NoUser("nobody".into())));
        assert_eq!(
            find("app:nogroup"),
            Err(UserError::NoGroup("nogroup".into()))
        );
        assert_eq!(find("-1"), Err(UserError::NoUser("-1".into())));
        assert_eq!(find("1:2:3"), Err(UserError::Malformed("1:2:3".into())));
    }

    #[test]
    fn name_made_of_digits_wins_over_the_number() {
        assert_eq!(find("42"), user(7, 7, &[], "/seven"));
    }
}

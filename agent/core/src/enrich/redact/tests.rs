use proptest::prelude::*;

use super::{HIDDEN, redact, redact_within};

/// Command lines with a secret at `@@`. What is written in one string with blanks inside quotes is one argument.
const COVERED: &[&[&str]] = &[
    &["tool", "--password", "@@", "--host", "db"],
    &["tool", "--password=@@", "db"],
    &["tool", "-password", "@@"],
    &["tool", "--token=@@"],
    &["tool", "--token", "@@"],
    &["tool", "--api-key", "@@"],
    &["tool", "--apiKey=@@"],
    &["tool", "--client-secret", "@@", "run"],
    &["tool", "--key=@@"],
    &["curl", "https://user:@@@example.org/path"],
    &["curl", "https://@@@example.org/path"],
    &["psql", "postgresql://app:@@@db:5432/app?sslmode=require"],
    &["rsync", "app:@@@host::module"],
    &["mysql", "-uroot", "-p@@", "db"],
    &["/usr/bin/mysql", "-p@@"],
    &["sudo", "mysqldump", "-p@@", "db"],
    &["tool", "-p@@"],
    &["sshpass", "-p", "@@", "ssh", "-p", "22", "host"],
    &["sshpass", "-p@@", "ssh", "host"],
    &["docker", "login", "-u", "me", "-p", "@@", "registry"],
    &["curl", "-u", "user:@@", "https://example.org"],
    &["curl", "-uuser:@@", "https://example.org"],
    &["curl", "-su", "user:@@", "-o", "/dev/null", "https://example.org"],
    &["curl", "-fsSLu", "user:@@", "https://example.org"],
    &["curl", "-suuser:@@", "https://example.org"],
    &["curl", "-E", "client.pem:@@", "https://example.org"],
    &["curl", "--cert", "client.pem:@@", "https://example.org"],
    &["ldapsearch", "-xw", "@@", "-b", "dc=example"],
    &["zip", "-rP", "@@", "a.zip", "b"],
    &["curl", "--user", "user:@@"],
    &["curl", "--user=user:@@"],
    &["curl", "--proxy-user", "user:@@"],
    &["smbclient", "-U", "user%@@", "//host/share"],
    &["env", "API_KEY=@@", "tool"],
    &["env", "PGPASSWORD=@@", "psql", "-h", "db"],
    &["env", "AWS_SECRET_ACCESS_KEY=@@", "aws", "s3", "ls"],
    &["docker", "run", "-e", "MYSQL_PWD=@@", "mysql:8"],
    &["docker", "run", "--env=DB_PASS=@@", "app"],
    &["java", "-Ddb.password=@@", "-jar", "app.jar"],
    &["curl", "-H", "Authorization: Bearer @@", "https://example.org"],
    &["curl", "-H", "authorization:Basic @@", "https://example.org"],
    &["curl", "--header=X-Api-Key: @@", "https://example.org"],
    &["curl", "-H", "Cookie: session=@@", "https://example.org"],
    &["tool", "Bearer", "@@"],
    &["tool", "Authorization:", "Bearer", "@@"],
    &["tool", "Bearer @@"],
    &["curl", "https://example.org/?user=me&token=@@&x=1"],
    &["curl", "-d", "user=me&password=@@", "https://example.org"],
    &["curl", "-d", r#"{"user":"me","password":"@@","x":1}"#],
    &["curl", "-d", r#"{ "apiKey" : "@@" }"#],
    &[
        "tool",
        "Server=db;Database=app;User Id=me;Password=@@;Encrypt=yes",
    ],
    &["tool", "host=db user=me password=@@ dbname=app"],
    &[
        "tool",
        "DefaultEndpointsProtocol=https;AccountName=a;AccountKey=@@",
    ],
    &[
        "aws",
        "configure",
        "set",
        "aws_secret_access_key",
        "@@0aBcDeFgHiJ",
    ],
    &["mysqladmin", "password", "@@"],
    &["redis-cli", "-h", "cache", "-a", "@@", "get", "x"],
    &["ldapsearch", "-D", "cn=admin", "-w", "@@"],
    &["xfreerdp", "/u:me", "/p:@@", "/v:host"],
    &["openssl", "rsa", "-passin", "pass:@@"],
    &["tool", "eyJhbGciOiJIUzI1NiJ9.@@.sig"],
    &["git", "clone", "ghp_@@"],
    &["tool", "-----BEGIN PRIVATE KEY----- @@ -----END PRIVATE KEY-----"],
    &["sh", "-c", "mysql -uroot -p@@ db -e 'select 1'"],
    &["sh", "-c", "curl -u user:@@ https://example.org | tee log"],
    &["sh", "-c", "cd /srv; PGPASSWORD=@@ psql -h db"],
    &["sh", "-c", "tool --password '@@ and @@' --host db"],
    &[
        "sh",
        "-c",
        "curl -H 'Authorization: Bearer @@' https://example.org",
    ],
    &["ssh", "host", "sh -c \"sshpass -p @@ ssh other\""],
    &["ssh", "-p", "8080", "host", "mysql", "-p@@"],
    &["postgres: me password=@@"],
];

fn owned(arguments: &[&str]) -> Vec<String> {
    arguments.iter().map(|argument| (*argument).to_owned()).collect()
}

fn with_canary(form: &[&str], canary: &str) -> Vec<String> {
    form.iter()
        .map(|argument| {
            argument
                .replace("@@@", &format!("{canary}@"))
                .replace("@@", canary)
        })
        .collect()
}

fn shown(arguments: &[&str]) -> String {
    redact(None, &owned(arguments), false).join(" ")
}

/// A piece of `canary` of at least four characters that `shown` tells.
fn told<'a>(canary: &'a str, shown: &str) -> Option<&'a str> {
    (0..canary.len().saturating_sub(3))
        .map(|at| &canary[at..at + 4])
        .find(|piece| shown.contains(piece))
}

#[test]
fn a_secret_in_a_covered_form_is_hidden_and_the_rest_is_not() {
    for form in COVERED {
        let shown = redact(None, &with_canary(form, "QX7ZK4WJ9V"), false);
        assert_eq!(shown.len(), form.len(), "{form:?}");
        assert_eq!(told("QX7ZK4WJ9V", &shown.join(" ")), None, "{form:?}: {shown:?}");
        assert!(shown.join(" ").contains(HIDDEN), "{form:?}");
        if form.len() > 1 {
            assert_eq!(shown[0], form[0]);
        }
    }
}

#[test]
fn a_cut_secret_is_hidden_wherever_the_cut_is() {
    let canary = "QX7ZK4WJ9V";
    for form in COVERED {
        let whole = with_canary(form, canary).join("\0");
        for end in 0..=whole.len() {
            let cut: Vec<String> = whole[..end].split('\0').map(str::to_owned).collect();
            let shown = redact(None, &cut, end < whole.len()).join(" ");
            assert_eq!(told(canary, &shown), None, "{cut:?}: {shown}");
        }
    }
}

#[test]
fn short_and_numeric_passwords_are_hidden_where_a_program_is_known() {
    assert_eq!(shown(&["mysql", "-p1234", "db"]), "mysql -p*** db");
    assert_eq!(shown(&["sudo", "-n", "mysql", "-p1"]), "sudo -n mysql -p***");
    assert_eq!(
        redact(Some("/usr/bin/mysql"), &owned(&["db", "-p1234"]), false),
        owned(&["db", "-p***"])
    );
}

#[test]
fn secrets_with_blanks_are_hidden_whole() {
    for arguments in [
        ["tool", "--password", "my secret phrase"],
        ["tool", "x", "--password=my secret phrase"],
        ["tool", "x", "PGPASSWORD=my secret phrase"],
        ["tool", "x", "Server=db;Password=my secret phrase;Port=1"],
        ["tool", "x", "Server=db; Password=my secret phrase"],
        ["tool", "x", r#"{"a":1,"password":"my secret phrase"}"#],
        ["sh", "-c", "tool --password \"my secret phrase\""],
        ["sh", "-c", r"tool --password my\ secret\ phrase x"],
    ] {
        let shown = shown(&arguments);
        for word in ["my ", "secret", "phrase"] {
            assert!(!shown.contains(word), "{arguments:?}: {shown}");
        }
    }
}

#[test]
fn a_command_line_without_secrets_stays_as_it_is() {
    for arguments in [
        &["ssh", "-p", "8080", "-i", "/home/me/.ssh/id", "me@host"][..],
        &["ssh", "-p8080", "host"],
        &["nc", "-l", "-p", "8080"],
        &["nmap", "-p1-1000,8080", "10.0.0.1"],
        &["curl", "-sS", "-o", "/dev/null", "https://example.org:8443/a?b=c"],
        &["sh", "-eu", "run.sh"],
        &["java", "-Dsun.misc=a:b", "-XX:+UseG1GC", "-jar", "app.jar"],
        &["tar", "-cuf", "a.tar", "b"],
        &["scp", "file", "me@host:dir"],
        &["git", "clone", "ssh://git@host/repo.git"],
        &["java", "-port", "8080", "-Xmx1g", "-jar", "app.jar"],
        &["python3", "-m", "http.server", "8000"],
        &["ping", "-c", "3", "host"],
        &["kubectl", "get", "pods", "-n", "kube-system"],
        &["sh", "-c", "while true; do date; sleep 1; done"],
        &["mkdir", "-p", "/srv/data"],
        &["sshd: me [priv]"],
        &["nginx: worker process"],
    ] {
        assert_eq!(shown(arguments), arguments.join(" "));
    }
}

#[test]
fn what_is_known_to_be_hidden_too_much() {
    assert_eq!(shown(&["curl", "http://a:80/x@y"]), "curl http://a:***@y");
    assert_eq!(shown(&["docker", "run", "-p", "80:80"]), "docker run -p ***");
    assert_eq!(shown(&["cp", "-pr", "a", "b"]), "cp -p*** a b");
    assert_eq!(shown(&["tool", "--key", "/etc/tls.key"]), "tool --key ***");
}

#[test]
fn no_arguments_are_no_trouble() {
    assert!(redact(None, &[], false).is_empty());
    assert!(redact(Some(""), &[], true).is_empty());
    assert_eq!(redact(Some("x"), &owned(&["", ""]), true), owned(&["", ""]));
}

#[test]
fn when_rounds_do_not_suffice_everything_is_hidden() {
    let arguments = owned(&["mysql", "-px"]);
    assert_eq!(
        redact_within(1, None, &arguments, false),
        owned(&[HIDDEN, HIDDEN])
    );
    assert_eq!(
        redact_within(2, None, &arguments, false),
        owned(&["mysql", "-p***"])
    );
}

/// Text made of what the rules look at, and of anything else.
fn hostile() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        4 => prop::sample::select(vec![
            "--password", "password", "token=", "key:", "-p", "-u", "://", "https", "Bearer", "basic", "eyJ", "AKIA",
            "mysql", "sshpass", "openssl", "@", ":", "=", "%3D", ";", "&", "|", "\"", "'", "\\", "`", " ", "\t", "(",
            ")", "{", "}", "-----BEGIN", "***", "-", "/", ".", "\0", "\n", "\u{fffd}", "\u{2003}", "ü", "𐍈", "%", ",",
        ]).prop_map(str::to_owned),
        1 => "\\PC{0,6}",
        1 => "[a-zA-Z0-9]{1,20}",
    ];
    prop::collection::vec(piece, 0..24).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_canary_in_a_covered_form_is_told(
        at in 0..COVERED.len(),
        canary in "[A-Z0-9][A-Z0-9!#$+./:=?^_~-]{8,30}[A-Z0-9]",
    ) {
        // Four characters that the form itself has would be told rightly.
        let form = COVERED[at].join(" ");
        prop_assume!(told(&canary, &form).is_none());
        prop_assume!(canary.contains(|c: char| c.is_ascii_uppercase()));
        // A token as a URL's user ends at the path, and with a colon it is a user and a password.
        prop_assume!(!(COVERED[at].contains(&"https://@@@example.org/path") && canary.contains(['/', ':'])));
        // A value that looks like ports or like an option is what `-p` means for a program without rules.
        prop_assume!(!canary.starts_with(['-', '/', '=']));
        let shown = redact(None, &with_canary(COVERED[at], &canary), false).join(" ");
        prop_assert_eq!(told(&canary, &shown), None, "{}", shown);
    }

    #[test]
    fn redaction_of_anything_ends_and_is_idempotent(
        arguments in prop::collection::vec(hostile(), 0..6),
        cut: bool,
        program in prop::option::of(hostile()),
    ) {
        let once = redact(program.as_deref(), &arguments, cut);
        prop_assert_eq!(once.len(), arguments.len());
        prop_assert_eq!(&redact(program.as_deref(), &once, cut), &once);
    }

    #[test]
    fn arbitrary_octets_are_no_trouble(
        octets in prop::collection::vec(any::<u8>(), 0..600),
        cut: bool,
    ) {
        let arguments: Vec<String> = octets
            .split(|&octet| octet == 0)
            .map(|word| String::from_utf8_lossy(word).into_owned())
            .collect();
        prop_assert_eq!(redact(None, &arguments, cut).len(), arguments.len());
    }
}

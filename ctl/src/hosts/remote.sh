# What agentctl does on a host, as root: one ACTION a call. POSIX sh; needs coreutils, util-linux and systemd of the host.
#
#   probe SIZE                         says what is there, and who the agent is, by a challenge (so many octets of stdin); changes
#                                      nothing
#   install UNIT ENV ACCESS DIGEST HOW
#                                      puts unit (so many octets of stdin), settings (so many), what gives access to runtimes (so
#                                      many; none: that goes) and program (the rest) in place; 0 and -: that one stays as it is. Then
#                                      HOW: no, or as start does. A program that does not stay up goes; what was before is back
#   keep                               the program on trial has proven itself
#   enrol TOKEN                        puts a join token (so many octets of stdin) where the agent looks for one
#   start restart|start                has the service run, now and at every boot, and sees that it stays up
#   remove                             takes everything away that the other actions brought, records that wait included
#   revert                             puts back what was there before the program on trial, and says so; without one, nothing is done
#   state                              says how the service does
#   doctor                             says what the agent's own program finds out about the host, as JSON; changes nothing
#
# A program that takes the place of another one is on trial until `keep`: a mark says so, whatever becomes of whoever called. Meanwhile
# the one that has proven itself is beside it (.previous), with its unit, its settings and its access to runtimes; the mark names those
# of them that were not there.
#
# One changing action at a time: a lock sees to that, which ends with the script. No program that could outlive the script has it.
#
# Secrets come by stdin only. A file is written beside its place, synced and renamed. What the agent's user owns is touched
# as that user only: root would follow a link that it could have put there.

set -eu
umask 022
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
LC_ALL=C
export PATH LC_ALL

name=flowtilla-agent
program=/usr/local/bin/$name
unit=/etc/systemd/system/$name.service
settings=/etc/flowtilla/agent.env
access=$unit.d/runtimes.conf
trial=/etc/flowtilla/on-trial
state=/var/lib/flowtilla
user=flowtilla
lock=/run/flowtilla-deploy.lock
# The version of the Debian package that has brought the agent. Program and unit are in the package's places then, and the package
# manager's to change; the rest is in the same places.
package=
if [ "$(dpkg-query -W -f '${db:Status-Status}' $name 2>/dev/null || :)" = installed ]; then
    package=$(dpkg-query -W -f '${Version}' $name)
    program=/usr/bin/$name
    unit=/usr/lib/systemd/system/$name.service
fi
# How often the service is looked at after its start, half a second apart: one that cannot run ends within a second, and is started
# again after two.
looks=4

fail() {
    printf 'flowtilla: %s\n' "$1" >&2
    exit 3
}

# The same, when it is the service that does not do.
fail_start() {
    printf 'flowtilla: %s\n' "$1" >&2
    exit 4
}

# The same, when somebody else is at work: it may be done in a moment.
fail_busy() {
    printf 'flowtilla: %s\n' "$1" >&2
    exit 75
}

[ "$(id -u)" = 0 ] || fail 'not root'

# Nobody else changes anything meanwhile.
alone() {
    exec 9>$lock
    flock -w 20 9 || fail_busy 'another deploy is at work here; try again when it has ended'
}

# What may leave processes behind does not get the lock.
systemctl() {
    command systemctl "$@" 9>&-
}

# Whether there is a program on trial, and the one from before. A mark alone is left of a way back that a power loss cut off at its
# end: the program from before is in place again.
on_trial() {
    [ -f $trial ] && [ -f $program.previous ]
}

# The digest of a file; nothing when there is none.
digest() {
    [ -f "$1" ] || return 0
    sum=$(sha256sum <"$1")
    printf '%s' "${sum%% *}"
}

# The next $1 octets of stdin, and no more: what reads ahead would take the rest away.
octets() {
    dd bs=1 count="$1" 2>/dev/null
}

# settle NEW PATH: NEW, which is whole, becomes PATH.
settle() {
    sync "$1" 2>/dev/null || sync
    mv -f "$1" "$2"
    sync "${2%/*}" 2>/dev/null || sync
}

probe() {
    echo flowtilla-probe
    echo "arch=$(uname -m)"
    echo "kernel=$(uname -r)"
    echo "libc=$(getconf GNU_LIBC_VERSION 2>/dev/null || :)"
    systemd=
    [ ! -d /run/systemd/system ] || systemd=$(systemctl --version | sed -n '1s/^systemd \([0-9]*\).*/\1/p')
    echo "systemd=$systemd"
    [ ! -r /sys/kernel/btf/vmlinux ] || echo btf=yes
    while read -r _ _ kind _; do
        [ "$kind" != cgroup2 ] || echo cgroup2=yes
    done </proc/mounts
    echo "package=$package"
    echo "program=$(digest $program)"
    if [ -x $program ]; then
        echo "version=$(timeout 10 $program --version 2>/dev/null || :)"
    fi
    echo "unit=$(digest $unit)"
    echo "settings=$(digest $settings)"
    echo "access=$(digest $access)"
    ! on_trial || echo trial=yes
    for group in docker root; do
        ! getent group $group >/dev/null || echo "group-$group=yes"
    done
    pid=$(systemctl show -p MainPID --value $name 2>/dev/null || :)
    if [ "${pid:-0}" -gt 0 ] && running=$(stat -Lc %d:%i "/proc/$pid/exe" 2>/dev/null) && [ -f $program ]; then
        [ "$running" = "$(stat -Lc %d:%i $program)" ] || echo stale=yes
    fi
    echo "active=$(systemctl is-active $name 2>/dev/null || :)"
    echo "enabled=$(systemctl is-enabled $name 2>/dev/null || :)"
    echo "reload=$(systemctl show -p NeedDaemonReload --value $name 2>/dev/null || :)"
    echo "chain=$(chain | sha256sum | cut -d ' ' -f 1)"
    ! id -u $user >/dev/null 2>&1 || identify "$1"
}

# The agent's own chain; nothing when it has none.
chain() {
    timeout 10 runuser -u $user -- head -c 65536 $state/identity/current/chain.pem 2>/dev/null || :
}

# Who the agent is: the program proves it for the challenge $1. When it does not, what its files say, which proves nothing, and why.
identify() {
    code=0
    said=$(printf %s "$1" | timeout 10 runuser -u $user -- $program prove --state $state 2>&1) || code=$?
    if [ $code != 0 ]; then
        echo "unproven=$code $(printf '%s\n' "$said" | tail -n 1 | head -c 400)"
        said=$(chain)
    fi
    echo svid
    printf '%s\n' "$said" | head -c 65536
}

# What the program finds out, then how it ended and its last words. Nothing follows `ended=`: there is no program.
doctor() {
    echo flowtilla-doctor
    code=
    words=
    if [ -x $program ]; then
        code=0
        { words=$(timeout 90 $program doctor -o json 2>&1 >&3) || code=$?; } 3>&1
    fi
    echo
    echo "ended=$code $(printf '%s\n' "$words" | tail -n 1 | head -c 400)"
}

# All of it arrives before anything is touched.
install_files() {
    # What was begun is brought to its end, whoever has gone: no host is left half-way.
    trap '' HUP INT PIPE
    mkdir -p /etc/flowtilla /usr/local/bin
    case $3 in none | 0) part=0 ;; *) part=$3 ;; esac
    take "$1" $unit.new
    take "$2" $settings.new
    take "$part" $settings.access
    [ "$4" = - ] || take_program "$4"
    id -u $user >/dev/null 2>&1 ||
        useradd --system --user-group --home-dir $state --no-create-home --shell /usr/sbin/nologin $user 9>&-
    [ "$4" = - ] || [ ! -f $program ] || on_trial || set_aside
    if [ "$1" -gt 0 ]; then settle $unit.new $unit; else rm -f $unit.new; fi
    if [ "$2" -gt 0 ]; then settle $settings.new $settings; else rm -f $settings.new; fi
    case $3 in
    none) rm -f $access ;;
    0) ;;
    *)
        mkdir -p ${access%/*}
        cp $settings.access $access.new
        settle $access.new $access
        ;;
    esac
    rm -f $settings.access
    [ "$4" = - ] || settle $program.new $program
    label
    systemctl daemon-reload
    case $5 in start | restart) start "$5" ;; esac
}

# take SIZE FILE: so many octets of stdin, all of them or none: whoever sends may be gone.
take() {
    octets "$1" >"$2"
    [ "$(wc -c <"$2")" -eq "$1" ] || fail 'what arrived is cut off'
}

take_program() {
    rm -f $program.new
    cat >$program.new
    [ "$(digest $program.new)" = "$1" ] || fail 'the program that arrived is not the one that was sent'
    chmod 0755 $program.new
    timeout 10 $program.new --version >/dev/null 9>&- || fail 'the program does not run on this host'
}

# What has proven itself is kept, and what comes is on trial.
set_aside() {
    rm -f $trial
    absent=
    # Copies, and no links: mv does nothing between two names of one file.
    for file in $unit $settings $access $program; do
        rm -f "$file.previous"
        if [ -f "$file" ]; then cp -p "$file" "$file.previous"; else absent="$absent $file"; fi
    done
    sync
    echo "absent:$absent" >$trial
    sync
}

# SELinux wants its labels on what was moved into place.
label() {
    ! command -v restorecon >/dev/null 2>&1 || restorecon $program $unit 2>/dev/null || :
}

# enrol SIZE CHAIN: a token of so many octets, for whoever has, or has not, the chain of this digest. Of two operators who saw the same
# the second would enrol anew what the first has just enrolled.
enrol() {
    [ "$(chain | sha256sum | cut -d ' ' -f 1)" = "$2" ] ||
        fail 'the agent has another identity than a moment ago: another deploy may have enrolled it'
    install -d -m 0700 -o $user -g $user $state
    octets "$1" | runuser -u $user -- sh -c 'umask 077; cd "$1" && rm -f join-token.new &&
        cat >join-token.new && mv -f join-token.new join-token' sh $state 9>&-
}

# Restarts of the service, so far.
restarts() {
    systemctl show -p NRestarts --value $name
}

start() {
    systemctl reset-failed $name 2>/dev/null || :
    systemctl enable --quiet $name
    systemctl "$1" $name || undo 'the service does not start'
    before=$(restarts)
    n=0
    while [ $n -lt $looks ]; do
        sleep 0.5
        n=$((n + 1))
        if [ "$(systemctl is-active $name)" != active ] || [ "$(restarts)" != "$before" ]; then
            undo 'the service does not stay up'
        fi
    done
}

# undo WHY: after a start that failed. What was there before a program on trial is back first; then it is told.
undo() {
    words=$(tell 2>&1)
    back=
    ! on_trial || put_back || :
    printf '%s\n' "$words" >&2
    fail_start "$1$back"
}

revert() {
    back=
    on_trial || return 0
    put_back || fail_start "the program on trial was to go$back"
    echo reverted
}

# The program last: until then it can be begun again. What came of it is in $back; it does not end the script.
put_back() {
    absent=" $(cat $trial) "
    for file in $access $unit $settings $program; do
        if [ -f "$file.previous" ]; then
            mv -f "$file.previous" "$file" || {
                back='; the program from before is not back'
                return 1
            }
        else
            case $absent in *" $file "*) rm -f "$file" || : ;; esac
        fi
    done
    rm -f $trial || :
    sync || :
    label
    systemctl daemon-reload || :
    systemctl reset-failed $name 2>/dev/null || :
    systemctl restart $name || {
        back='; the program from before does not start either'
        return 1
    }
    back='; the program from before is back'
}

remove() {
    [ -z "$package" ] || dpkg --purge $name >/dev/null 9>&-
    systemctl disable --quiet --now $name 2>/dev/null || :
    for file in $unit $settings $access $program; do
        rm -f "$file" "$file.new" "$file.previous"
    done
    rm -f $settings.access $trial
    rmdir ${access%/*} 2>/dev/null || :
    rmdir /etc/flowtilla 2>/dev/null || :
    rm -rf $state
    ! id -u $user >/dev/null 2>&1 || userdel $user 9>&-
    systemctl daemon-reload
    systemctl reset-failed $name 2>/dev/null || :
}

# The last words of the service.
tell() {
    journalctl -u $name -n 3 -o cat --no-pager >&2 2>/dev/null || :
}

case ${1-} in
install | keep | enrol | start | remove | revert) alone ;;
esac

case ${1-} in
probe) probe "$(octets "$2")" ;;
install) install_files "$2" "$3" "$4" "$5" "$6" ;;
keep) rm -f $trial ;;
enrol) enrol "$2" "$3" ;;
start) start "$2" ;;
remove) remove ;;
revert) revert ;;
doctor) doctor ;;
state)
    systemctl is-active $name || :
    tell 2>&1
    ;;
*) fail 'no such action' ;;
esac

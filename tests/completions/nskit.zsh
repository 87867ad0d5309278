# Completions of the nskit tools for zsh(1).

# Who can be entered: holders by name, one's own processes by number.
_nskit_target() {
    local -a names numbers
    local address name rest process
    ns-show --holders 2>/dev/null | while read -r address name rest; do
        numbers+=(${address%%:*})
        [[ $name == - ]] || names+=($name)
    done
    for process in /proc/<->(Nu$EUID); do numbers+=(${process:t}); done
    _alternative "names:holder:($names)" "processes:process:($numbers)" 'stream:stream:(-)'
}
_nskit_pid() { _alternative 'words:session:(tty)' 'targets:target:_nskit_target' }
_nskit_map() { compadd "$@" root same subids auto keep all }
_nskit_preset() { _nskit_map "$@" }

case $service in

# shellcheck shell=bash
# Who can be entered: holders by name, one's own processes by number.
_nskit_targets() {
    ns-show --holders 2>/dev/null | while read -r address name _; do
        echo "${address%%:*}"
        [ "$name" = - ] || echo "$name"
    done
    local process
    for process in /proc/[0-9]*; do
        [ ! -O "$process" ] || echo "${process#/proc/}"
    done
}

_nskit_reply() { # KIND WORD
    local words
    case $1 in
    file) compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$2"); return ;;
    dir) compopt -o filenames; mapfile -t COMPREPLY < <(compgen -d -- "$2"); return ;;
    program) mapfile -t COMPREPLY < <(compgen -c -- "$2"); return ;;
    user) mapfile -t COMPREPLY < <(compgen -u -- "$2"); return ;;
    signal) mapfile -t COMPREPLY < <(compgen -A signal -- "SIG${2#SIG}"); COMPREPLY=("${COMPREPLY[@]#SIG}"); return ;;
    target) words="$(_nskit_targets) -" ;;
    pid) words="$(_nskit_targets) tty" ;;
    map | preset) words='root same subids auto keep all' ;;
    words:*) words=${1#words:} words=${words//|/ } ;;
    *) return ;;
    esac
    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$2")
}

# A program completes its own arguments: one of ours, or whatever bash knows.
_nskit_program() { # NUMBER OF ITS WORD
    COMP_WORDS=("${COMP_WORDS[@]:$1}") COMP_CWORD=$((COMP_CWORD - $1))
    if [ -n "${_nskit_options[${COMP_WORDS[0]##*/}]-}" ]; then
        _nskit
    elif declare -F _command_offset >/dev/null; then
        _command_offset 0
    else
        _nskit_reply file "${COMP_WORDS[COMP_CWORD]}"
    fi
}

_nskit() {
    local tool=${COMP_WORDS[0]##*/} word=${COMP_WORDS[COMP_CWORD]} index entry wanted='' count=0 ended=''
    local -A kinds=()
    for entry in ${_nskit_options[$tool]}; do kinds[${entry%%=*}]=${entry#*=}; done
    # shellcheck disable=SC2206 # these are words
    local operands=(${_nskit_operands[$tool]})
    COMPREPLY=()
    for ((index = 1; index < COMP_CWORD; index++)); do
        entry=${COMP_WORDS[index]}
        if [ "$entry" = = ]; then
            # bash splits --name=value; a value that is optional comes only so.
            wanted=${kinds[${COMP_WORDS[index - 1]}]-any}
            wanted=${wanted#\?}
        elif [ -n "$wanted" ]; then
            wanted=''
        elif [ -z "$ended" ] && [ "$entry" = -- ]; then
            ended=yes
        elif [ -z "$ended" ] && [[ $entry == -?* ]]; then
            [[ $entry == --* ]] || entry=-${entry: -1}
            wanted=${kinds[$entry]-none}
            case $wanted in none | \?*) wanted='' ;; esac
        else
            if [ "${operands[count]-}" = program ]; then
                _nskit_program $index
                return
            fi
            [ "${operands[count]-}" = map ] || count=$((count + 1))
        fi
    done
    if [ "$word" = = ]; then
        wanted=${kinds[${COMP_WORDS[COMP_CWORD - 1]}]-any}
        wanted=${wanted#\?} word=''
    fi
    if [ -n "$wanted" ]; then
        _nskit_reply "$wanted" "$word"
    elif [ -z "$ended" ] && [[ $word == -* ]]; then
        mapfile -t COMPREPLY < <(compgen -W "${!kinds[*]}" -- "$word")
    else
        _nskit_reply "${operands[count]-any}" "$word"
    fi
}

complete -F _nskit "${!_nskit_options[@]}"

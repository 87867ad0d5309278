# Completions of an nskit tool for fish(1).

# Who can be entered: holders by name, one's own processes by number.
function __nskit_targets
    ns-show --holders 2>/dev/null | while read -d ' ' address name rest
        echo (string split : $address)[1]
        test $name = -; or echo $name
    end
    for process in /proc/*
        if string match -qr '^/proc/[0-9]+$' $process; and test -O $process
            string replace /proc/ '' $process
        end
    end
    echo -
end

# The places of the operands on the line so far. TOOL
function __nskit_places
    set -l takes __nskit_takes_(string replace -a - _ $argv[1])
    set -l words (commandline -opc)
    set -l ended no
    set -l wanted no
    for place in (seq 2 (count $words))
        set -l word $words[$place]
        if test $wanted = yes
            set wanted no
        else if test $ended = no -a "$word" = --
            set ended yes
        else if test $ended = no; and string match -qr '^-.' -- $word
            contains -- $word $$takes; and set wanted yes
        else
            echo $place
        end
    end
end

# Whether the next word is operand N. TOOL N
function __nskit_at
    test (count (__nskit_places $argv[1])) = (math $argv[2] - 1)
end

# Whether operand N is there, or next. TOOL N
function __nskit_past
    test (count (__nskit_places $argv[1])) -ge (math $argv[2] - 1)
end

# Whether options still belong to this tool. TOOL
function __nskit_options_end
    set -l program __nskit_program_(string replace -a - _ $argv[1])
    test $$program = 0; or not test (count (__nskit_places $argv[1])) -ge $$program
end

# What completes the program and its arguments. TOOL N
function __nskit_program
    set -l places (__nskit_places $argv[1])
    set -l words (commandline -opc)
    set -l line
    if test (count $places) -ge $argv[2]
        set line (string escape -- $words[$places[$argv[2]]..-1])
    end
    complete -C (string join ' ' -- $line (commandline -ct))
end


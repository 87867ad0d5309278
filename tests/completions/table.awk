# What --help of a tool says, a line each, with tabs between:
#   option TOOL NAME KIND TEXT      NAME is -U or --user; KIND is what its value is, ?KIND if it may go without
#   operand TOOL KIND N             the Nth operand
#   end TOOL
function kind(value) {
    if (value == "") return "none"
    if (value ~ /^\[=/) return "?" kind(substr(value, 3, length(value) - 3))
    if (value ~ /^[a-z]+([|][a-z]+)+$/) return "words:" value
    if (value ~ /^TARGET/) return "target"
    if (value == "PID|tty") return "pid"
    if (value ~ /^MAP/) return "map"
    if (value == "PRESET") return "preset"
    if (value == "SIGNAL") return "signal"
    if (value == "USER" || value == "OWNER") return "user"
    if (value == "DIR" || value == "ROOT") return "dir"
    if (value ~ /^(FILE|PATH|SOURCE|DEST)/) return "file"
    return "any"
}

# The form with most operands, of those that do not begin with an option of their own.
/^(usage:|      ) [a-z]/ && !/--/ || /^usage:/ {
    line = $0
    gsub(/\[(OPTION...|KINDS|--[^]]*)\]|KINDS|[][.]|^usage:/, " ", line)
    count = split(line, words, " ")
    if (count > most) {
        most = count
        for (i = 2; i <= count; i++) form[i - 1] = words[i]
    }
}

/^  / && !/^       [a-z]/ {
    count = split($0, chunks, /  +/)
    text = chunks[count] ~ /^(-[A-Za-z], )?--[a-z]/ ? "" : chunks[count]
    for (i = 1; i <= count; i++) {
        if (chunks[i] !~ /^(-[A-Za-z], )?--[a-z]/) continue
        long = chunks[i]
        letter = ""
        if (long ~ /^-[A-Za-z], /) {
            letter = substr(long, 1, 2)
            long = substr(long, 5)
        }
        at = match(long, /[ [].*/)
        value = at ? substr(long, at) : ""
        sub(/^ /, "", value)
        if (at) long = substr(long, 1, at - 1)
        names[++n] = letter "\t" long "\t" kind(value)
        texts[n] = ""
    }
    # Several on a line, or on two, have their text after the last.
    if (text != "") for (i = n; i > 0 && texts[i] == ""; i--) texts[i] = text
}

END {
    for (i = 1; i <= n; i++) {
        split(names[i], part, "\t")
        # A letter takes no optional value.
        if (part[1] != "") print "option\t" tool "\t" part[1] "\t" (part[3] ~ /^\?/ ? "none" : part[3]) "\t" texts[i]
        print "option\t" tool "\t" part[2] "\t" part[3] "\t" texts[i]
    }
    for (i = 1; i < most; i++) {
        if (form[i] == "ARGUMENT") break
        print "operand\t" tool "\t" (form[i] == "PROGRAM" ? "program" : kind(form[i])) "\t" i
    }
    print "end\t" tool
}

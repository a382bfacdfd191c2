#compdef lion
autoload -Uz bashcompinit && bashcompinit
@bash@
# loaded by the first Tab, the file completes it too
[ "${funcstack[1]}" = _lion ] && _bash_complete -o default -F _lion

#compdef lion
autoload -Uz bashcompinit && bashcompinit

# Answers every connection to a unix socket.
use IO::Socket::UNIX;
my $listen = IO::Socket::UNIX->new(Type => SOCK_STREAM, Local => $ARGV[0], Listen => 16) or die "$!";
while (my $client = $listen->accept) {
    while (my $line = <$client>) { last if $line =~ /^\r?\n$/ }
    print $client "HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok";
    close $client;
}

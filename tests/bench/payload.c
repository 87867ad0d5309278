/* The least that a program can be: it ends. */
void _start(void)
{
	__asm__("syscall" :: "a"(60), "D"(0));
}

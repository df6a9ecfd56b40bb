/** What JSX becomes; calls of `h` are shorter than those of the automatic runtime. The build puts this into each file. */

export { Fragment, h } from "preact";
